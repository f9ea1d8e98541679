"""Tests with real container runtimes: containerd, podman, runc, and libcni's rules."""
