"""The host-local IPAM plugin, on the same store as the executed one."""
