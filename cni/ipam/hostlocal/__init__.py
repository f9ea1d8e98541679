"""The host-local IPAM plugin, on the same files as the executed one."""
