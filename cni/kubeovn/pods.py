"""This node's pods as the API server has them, and waiting until one is as it must be."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cni.cancel import Cancel
from cni.config.settings import Kubernetes
from cni.errors import DeadlineExceeded, NotReady, TryAgain
from cni.kubeovn.pod_annotations import needed

log = logging.getLogger("vmlink")

_LOOK_SECONDS = 1  # how often a wait looks whether its caller has hung up
_STATUS_SECONDS = 2
# kubelet's mark on the mirror of a static pod. Source: Kubernetes API, k8s.io/api/core/v1.
_MIRROR = "kubernetes.io/config.mirror"

PodName = tuple[str, str]  # (namespace, name)


@dataclass(frozen=True)
class Pod:
    """One pod. `annotations` are only those that vmlink reads; `runtime_class` "" is none."""

    namespace: str = ""
    name: str = ""
    uid: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    runtime_class: str = ""

    @staticmethod
    def of(data: Mapping[str, Any]) -> Pod:
        """Read the API's object. Raises KeyError, TypeError or AttributeError when it is no pod."""
        meta, spec = data["metadata"], data.get("spec") or {}
        annotations = meta.get("annotations") or {}
        return Pod(
            meta["namespace"],
            meta["name"],
            # Runtimes know a static pod by kubelet's uid, the API server has its mirror's.
            annotations.get(_MIRROR) or meta["uid"],
            needed(annotations),
            spec.get("runtimeClassName") or "",
        )


class Pods:
    """A replica of this node's pods, which the watch keeps up to date.

    `start_watch` starts it in a thread of its own; the watch calls `replace`, `update`, `remove`
    and `report`, and ends when `closing` is set.
    """

    def __init__(self, settings: Kubernetes, start_watch: Callable[[Pods], None]) -> None:
        self.settings = settings
        self.closing = False
        self.wake = threading.Event()  # set: a watch that is broken is tried again at once
        self._start_watch = start_watch
        self._started = False
        self._changed = threading.Condition()  # its lock is for what follows
        self._pods: dict[PodName, Pod] = {}
        self._trouble = "no answer yet"  # "" while the watch is open

    def start(self) -> None:
        """Start the watch, unless it has been started. Raises TryAgain without credentials."""
        if not self.settings.configured:
            raise TryAgain(
                "kubernetes.kubeconfig: there are no credentials to ask the API server for a pod; "
                "set it in vmlinkd.yaml, or run vmlinkd in a pod"
            )
        with self._changed:
            if not self._started:
                self._start_watch(self)
                self._started = True

    def wait(self, pod: PodName, uid: str, lacking: Callable[[Pod], str], cancel: Cancel) -> Pod:
        """Return the pod as soon as it lacks nothing.

        `lacking` says what a pod lacks, "" for nothing; `uid` is "" when the runtime does not pass
        it. Raises DeadlineExceeded with what was waited for, ClientGone when the caller hangs up,
        TryAgain without credentials or when the pod is deleted meanwhile.
        """
        self.start()
        self.wake.set()
        seen = ""
        with self._changed:
            while True:
                known = self._pods.get(pod)
                if seen and (known is None or known.uid != seen):
                    raise TryAgain(
                        f"pod {'/'.join(pod)} was deleted while it was waited for; only a new pod "
                        "can be attached"
                    )
                lacks = self._doubt(known, uid)
                if known and not lacks:
                    seen, lacks = known.uid, lacking(known)
                    if not lacks:
                        return known
                if cancel.remaining() <= 0:
                    raise DeadlineExceeded(f"pod {'/'.join(pod)}: {lacks}{self._state()}")
                cancel.check()
                self._changed.wait(min(cancel.remaining(), _LOOK_SECONDS))

    def _doubt(self, known: Pod | None, uid: str) -> str:
        """Why `known` may not be the pod that is asked for."""
        if known is None:
            return f"is not among the pods of node {self.settings.node_name}"
        if uid and known.uid != uid:
            return f"expected the one with uid {uid}, found its namesake {known.uid}"
        # Without a uid, a pod from before the watch broke may be another of the same name.
        return "" if uid or not self._trouble else "may have changed meanwhile"

    def _state(self) -> str:
        return f"; the API server: {self._trouble}" if self._trouble else ""

    def ready(self) -> None:
        """Raise NotReady, for STATUS, when there are credentials but no watch."""
        if not self.settings.configured:
            return
        self.start()
        deadline = time.monotonic() + _STATUS_SECONDS
        with self._changed:
            while self._trouble:
                if (left := deadline - time.monotonic()) <= 0:
                    raise NotReady(f"kubernetes: the API server: {self._trouble}")
                self._changed.wait(left)

    def close(self) -> None:
        """Have the watch end at its next event. Does not wait for it."""
        self.closing = True
        self.wake.set()

    def replace(self, pods: Iterable[Pod]) -> None:
        """Take in a list of all pods."""
        with self._changed:
            self._pods = {(pod.namespace, pod.name): pod for pod in pods}
            self._changed.notify_all()

    def update(self, pod: Pod) -> None:
        """Take in a pod that is new or has changed."""
        with self._changed:
            self._pods[pod.namespace, pod.name] = pod
            self._changed.notify_all()

    def remove(self, pod: Pod) -> None:
        """Take in that a pod was deleted, or is not this node's any more."""
        with self._changed:
            self._pods.pop((pod.namespace, pod.name), None)
            self._changed.notify_all()

    def report(self, trouble: str) -> None:
        """Take in why there is no watch; "" when it is open."""
        with self._changed:
            if trouble and trouble != self._trouble:
                log.warning("the watch of this node's pods is broken, trying again: %s", trouble)
            elif self._trouble and not trouble:
                log.info("watching the pods of node %s", self.settings.node_name)
            self._trouble = trouble
            self._changed.notify_all()
