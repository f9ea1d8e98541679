"""The programs: vmlink, vmlinkctl and vmlink-hook."""
