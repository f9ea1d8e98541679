"""kube-ovn: what its controller writes about a pod."""
