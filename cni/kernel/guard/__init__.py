"""The guard: an eBPF program that lets pass what is a guest's own. guard.bpf.c has the rules."""
