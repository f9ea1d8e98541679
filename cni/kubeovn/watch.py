"""The watch of this node's pods: one list, then events, for the life of vmlinkd.

lightkube reads the credentials and sets up TLS. Source: Kubernetes documentation, "Kubernetes API
Concepts", section "Efficient detection of changes".
"""

from __future__ import annotations

import json
import logging
import random
import socket
from collections.abc import Mapping
from typing import Any

import httpx2 as httpx
from lightkube.config.client_adapter import Client, ConnectionParams
from lightkube.config.kubeconfig import KubeConfig

from cni.config.settings import Kubernetes
from cni.errors import VmlinkError
from cni.kubeovn.pods import Pod, Pods

log = logging.getLogger("vmlink")

_PATH = "/api/v1/pods"
_SECONDS = 300  # after which the server is asked to end a watch
_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds before the next try
_GONE = 410  # HTTP status
# A server that has crashed is noticed within 25 s, less than the usual deadline of a request.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}


class Gone(VmlinkError):
    """410: the server does not have the resource version any more; only a new list helps."""


class Watch:
    """Keeps `pods` up to date: `run` is the function of its thread."""

    def __init__(self, pods: Pods, settings: Kubernetes) -> None:
        self._pods = pods
        self._settings = settings
        self._pause = _PAUSE
        self._client: httpx.Client | None = None
        # The resourceVersion to list: "0" may come from the server's cache, "" is the newest.
        self._list_version = "0"
        self._version: str | None = None  # to watch from; None: list first

    def run(self) -> None:
        """List and watch, again and again, until `pods` closes."""
        while not self._pods.closing:
            try:
                if self._client is None:
                    self._client = _connect(self._settings)
                if self._version is None:
                    self._version = self._list(self._client)
                self._watch(self._client)
            except Gone as e:
                log.info("listing the pods again: %s", e.msg)
                self._list_version, self._version = "", None
            except Exception as e:  # whatever it is, the next try may succeed
                self._failed(e)
            self._rest()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._client:
            self._client.close()
        self._client = None

    def _failed(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        self._pods.report(text)
        if isinstance(error, httpx.HTTPStatusError) or not isinstance(error, httpx.HTTPError):
            self._disconnect()  # so that the credentials are read again

    def _rest(self) -> None:
        """Pause until somebody waits for a pod; at random, so that nodes do not retry together."""
        self._pods.wake.clear()
        if not self._pods.closing:
            self._pods.wake.wait(self._pause * random.uniform(0.5, 1.5))
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _list(self, client: httpx.Client) -> str:
        params = {**self._selector(), "resourceVersion": self._list_version}
        response = client.get(_PATH, params=params)
        _refuse_gone(response)
        response.raise_for_status()
        data = response.json()
        self._pods.replace(Pod.of(item) for item in data["items"] or ())
        return str(data["metadata"]["resourceVersion"])

    def _watch(self, client: httpx.Client) -> None:
        """Take events in until the server ends the watch."""
        params = {
            **self._selector(),
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_SECONDS),
            "resourceVersion": self._version or "",
        }
        timeout = httpx.Timeout(10, read=_SECONDS + 30)
        with client.stream("GET", _PATH, params=params, timeout=timeout) as response:
            _refuse_gone(response)
            response.raise_for_status()
            _keep_alive(response)
            self._pods.report("")
            for line in response.iter_lines():
                self._pause = _PAUSE
                self._take(json.loads(line))

    def _take(self, event: Mapping[str, Any]) -> None:
        kind, data = event["type"], event["object"]
        if kind == "ERROR":
            if data.get("code") == _GONE:
                raise Gone(str(data.get("message")))
            raise VmlinkError(f"the watch ended with {data.get('code')}: {data.get('message')}")
        if kind == "DELETED":
            self._pods.remove(Pod.of(data))
        elif kind != "BOOKMARK":
            self._pods.update(Pod.of(data))
        self._version = data["metadata"]["resourceVersion"]

    def _selector(self) -> dict[str, str]:
        return {"fieldSelector": f"spec.nodeName={self._settings.node_name}"}


def _connect(settings: Kubernetes) -> httpx.Client:
    path = settings.kubeconfig
    known = KubeConfig.from_file(path) if path else KubeConfig.from_service_account()
    config = known.get()
    if config is None:
        raise VmlinkError(f"kubernetes.kubeconfig: {path} has no current context; set one")
    return Client(config, ConnectionParams(timeout=httpx.Timeout(10), trust_env=False))


def _refuse_gone(response: httpx.Response) -> None:
    if response.status_code == _GONE:
        raise Gone("the server answered 410 Gone")


def _keep_alive(response: httpx.Response) -> None:
    stream = response.extensions.get("network_stream")
    if conn := stream and stream.get_extra_info("socket"):
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            conn.setsockopt(socket.IPPROTO_TCP, option, value)
