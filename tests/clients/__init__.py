"""Tests with real container runtimes: containerd, podman, runc, libvirt, and libcni's rules."""
