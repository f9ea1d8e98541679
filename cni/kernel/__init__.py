"""The kernel's interfaces: netlink, tc, eBPF, taps, macvtaps and network namespaces."""
