"""kube-ovn: what its controller writes about a pod, and the requests of its plugin."""
