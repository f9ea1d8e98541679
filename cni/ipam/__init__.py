"""Addresses: host-local in this process, any other IPAM plugin executed."""
