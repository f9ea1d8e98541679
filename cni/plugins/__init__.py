"""The programs that others execute: vmlink (in C), vmlinkctl and vmlink-hook."""
