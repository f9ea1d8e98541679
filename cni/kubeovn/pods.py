"""This node's pods, as the API server tells them, and waiting until one is as it must be."""

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
from cni.kubeovn import annotations as assignment

log = logging.getLogger("vmlink")

_LOOK_SECONDS = 1  # between two looks whether the caller has hung up
_STATUS_SECONDS = 2
_MIRROR = "kubernetes.io/config.mirror"

PodName = tuple[str, str]  # (namespace, name)


@dataclass(frozen=True)
class Pod:
    """`annotations` are only those that vmlink reads; `runtime_class` "" is none."""

    namespace: str = ""
    name: str = ""
    uid: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    runtime_class: str = ""

    @staticmethod
    def of(data: Mapping[str, Any]) -> Pod:
        """From the API's object. Raises KeyError, TypeError, AttributeError when it is none."""
        meta, spec = data["metadata"], data.get("spec") or {}
        given = meta.get("annotations") or {}
        return Pod(
            meta["namespace"],
            meta["name"],
            # The runtime has kubelet's uid of a static pod, the API server a mirror with its own.
            given.get(_MIRROR) or meta["uid"],
            assignment.needed(given),
            spec.get("runtimeClassName") or "",
        )


class Pods:
    """A replica that the watch (watch.py, loaded when it is first needed) keeps up to date."""

    def __init__(self, settings: Kubernetes) -> None:
        self.settings = settings
        self._changed = threading.Condition()
        self._known: dict[PodName, Pod] = {}
        self._trouble = "no answer yet"  # "" while the watch is open
        self._thread: threading.Thread | None = None
        self.closing = False
        self.wake = threading.Event()  # a broken watch is tried again at once

    def start(self) -> None:
        """Watch in the background, if that has not begun. Raises TryAgain without credentials."""
        if not self.settings.configured:
            raise TryAgain(
                "kubernetes.kubeconfig: there are no credentials to ask the API server for a pod; "
                "set it in vmlinkd.yaml, or run vmlinkd in a pod"
            )
        with self._changed:
            if self._thread:
                return
            from cni.kubeovn.watch import Watch

            run = Watch(self, self.settings).run
            self._thread = threading.Thread(target=run, name="vmlink-pods", daemon=True)
            self._thread.start()

    def wait(self, pod: PodName, uid: str, lacking: Callable[[Pod], str], cancel: Cancel) -> Pod:
        """The pod once it lacks nothing; `lacking` says what it does. An empty `uid` is not known.

        Raises DeadlineExceeded with what was waited for, TryAgain when the pod goes meanwhile.
        """
        self.start()
        self.wake.set()
        seen = ""
        with self._changed:
            while True:
                found = self._known.get(pod)
                if seen and (found is None or found.uid != seen):
                    raise TryAgain(f"pod {'/'.join(pod)} was deleted while it was waited for")
                lacks = self._lacks(found, uid)
                if found and not lacks:
                    seen, lacks = found.uid, lacking(found)
                    if not lacks:
                        return found
                if cancel.remaining() <= 0:
                    raise DeadlineExceeded(f"pod {'/'.join(pod)}: {lacks}{self._state()}")
                cancel.check()
                self._changed.wait(min(cancel.remaining(), _LOOK_SECONDS))

    def _lacks(self, found: Pod | None, uid: str) -> str:
        if found is None:
            return f"is not among the pods of node {self.settings.node_name}"
        if uid and found.uid != uid:
            return f"expected the one with uid {uid}, found its namesake {found.uid}"
        # What is known from before may be a namesake's, when nobody told the uid.
        return "" if uid or not self._trouble else "may have changed meanwhile"

    def _state(self) -> str:
        return f"; the API server: {self._trouble}" if self._trouble else ""

    def ready(self) -> None:
        """STATUS: raises NotReady when there are credentials but no answer."""
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
        """Ends the watch when it next hears of something; vmlinkd's end does not wait for it."""
        self.closing = True
        self.wake.set()

    def replace(self, pods: Iterable[Pod]) -> None:
        """All that there are, at once."""
        with self._changed:
            self._known = {(pod.namespace, pod.name): pod for pod in pods}
            self._changed.notify_all()

    def update(self, pod: Pod) -> None:
        with self._changed:
            self._known[pod.namespace, pod.name] = pod
            self._changed.notify_all()

    def remove(self, pod: Pod) -> None:
        with self._changed:
            self._known.pop((pod.namespace, pod.name), None)
            self._changed.notify_all()

    def heard(self, trouble: str) -> None:
        """How it is with the API server; "" is well."""
        with self._changed:
            if trouble and trouble != self._trouble:
                log.warning("the watch of this node's pods is broken: %s", trouble)
            elif self._trouble and not trouble:
                log.info("this node's pods are watched")
            self._trouble = trouble
            self._changed.notify_all()
