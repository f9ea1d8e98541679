"""vmlink: connects the network of a pod to the virtual machine that the pod is."""

__version__ = "0.1.0"
