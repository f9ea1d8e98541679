"""IPAM: host-local in this process, any other plugin executed; addresses that kube-ovn gave."""
