"""kube-ovn: what its controller writes about a pod, and this node's pods."""

from __future__ import annotations

import threading

from cni.config.settings import Kubernetes
from cni.kubeovn.pods import Pods


def open_pods(settings: Kubernetes) -> Pods:
    """Return this node's pods; they are watched as soon as somebody asks for one."""

    def start_watch(pods: Pods) -> None:
        # lightkube and its HTTP client cost some MB, and most nodes never need them.
        from cni.kubeovn.watch import Watch

        run = Watch(pods, settings).run
        threading.Thread(target=run, name="vmlink-pods", daemon=True).start()

    return Pods(settings, start_watch)
