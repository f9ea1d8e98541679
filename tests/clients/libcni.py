"""What libcni does with a network: chained results, capabilities, and the cached result.

Source: github.com/containernetworking/cni, libcni/api.go: buildOneConfig, cacheAdd,
CheckNetworkList, DelNetworkList.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.testbed.node import CLIENT, PLUGINS, Answer, Node


class Network:
    """A list of plugins on a node; results are cached in the directory `cache`."""

    def __init__(self, node: Node, cache: Path, name: str, version: str, *plugins: Any) -> None:
        self.node, self.cache, self.name, self.version = node, cache, name, version
        self.plugins: Sequence[dict[str, Any]] = plugins

    def add(self, container: str, netns: Path, **capabilities: Any) -> Any:
        result = None
        for plugin in self.plugins:
            conf = self._config(plugin, capabilities, result)
            result = self._exec("ADD", conf, container, netns).expect()
        cached: dict[str, Any] = {"kind": "cniCacheV1", "containerId": container, "ifName": "eth0"}
        cached |= {"networkName": self.name, "capabilityArgs": capabilities, "result": result}
        self._cached(container).write_text(json.dumps(cached))
        return result

    def check(self, container: str, netns: Path) -> None:
        known = json.loads(self._cached(container).read_text())
        for plugin in self.plugins:
            conf = self._config(plugin, known["capabilityArgs"], known["result"])
            self._exec("CHECK", conf, container, netns).expect()

    def delete(self, container: str, netns: Path | None) -> None:
        """Send DEL with the cached result, if there is one; a lost cache is no error."""
        path = self._cached(container)
        known = json.loads(path.read_text()) if path.exists() else {}
        for plugin in reversed(self.plugins):
            conf = self._config(plugin, known.get("capabilityArgs", {}), known.get("result"))
            self._exec("DEL", conf, container, netns).expect()
        path.unlink(missing_ok=True)

    def forget(self, container: str) -> None:
        """Lose the cached result."""
        self._cached(container).unlink(missing_ok=True)

    def _config(
        self, plugin: Mapping[str, Any], capabilities: Mapping[str, Any], prev: Any
    ) -> dict[str, Any]:
        conf = {**plugin, "cniVersion": self.version, "name": self.name}
        wanted = conf.pop("capabilities", {})
        if runtime := {k: v for k, v in capabilities.items() if wanted.get(k)}:
            conf["runtimeConfig"] = runtime
        return conf | ({"prevResult": prev} if prev else {})

    def _exec(self, verb: str, conf: Any, container: str, netns: Path | None) -> Answer:
        kind = conf["type"]
        plugin = CLIENT if kind == "vmlink" else PLUGINS / kind
        return self.node.call(verb, conf, container, netns, plugin=plugin)

    def _cached(self, container: str) -> Path:
        return self.cache / f"{self.name}-{container}-eth0"
