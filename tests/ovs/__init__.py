"""Tests against a real Open vSwitch, OVN and kube-ovn's plugin."""
