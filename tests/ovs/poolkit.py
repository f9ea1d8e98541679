"""A node whose vmlinkd has a pool."""

from __future__ import annotations

import json
from typing import Any

from bench.testbed.node import BIN, Node
from tests.ovs.ovskit import BRIDGE
from tests.ovs.test_attachments import links
from tests.waits import until

SIZE = 3
KUBELET = "IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop"


class Pooled:
    """A node with a pool of mode tap for the network `net`."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.settings = node.lab.dir / "vmlinkd.yaml"
        self.pod = node.pod()

    def conf(self, **change: Any) -> dict[str, Any]:
        base = {"cniVersion": "1.1.0", "name": "net", "type": "vmlink", "mode": "tap"}
        ipam = self.node.ipam("10.9.0.0/24")
        return {**base, "ovs": {"bridge": BRIDGE}, "ipam": ipam, **change}

    def start(self, pools: str = f"{{net: {{tap: {{size: {SIZE}, refill_below: 1}}}}}}") -> None:
        self.settings.write_text(f"pools: {pools}\n")
        self.node.start((str(BIN / "vmlinkd"), "--config", str(self.settings)))

    def restart(self, *pools: str) -> None:
        assert self.node.stop() == 0
        self.start(*pools)

    def call(self, verb: str, container: str = "c1", **change: Any) -> Any:
        env = {"CNI_ARGS": KUBELET}
        return self.node.call(verb, self.conf(**change), container, self.pod, **env).expect()

    def told(self) -> dict[str, Any]:
        out = self.node.run(self.node.ctl("pool", "--json")).stdout
        return (json.loads(out) or [{}])[0]

    def kits(self) -> set[str]:
        paths = self.node.run_dir.glob("pool/*/*.json")
        return {path.stem for path in paths if path.name != "pool.json"}

    def fill(self, count: int = SIZE) -> set[str]:
        """The kits, once there are so many and nothing is under way."""
        until(lambda: self.told().get("ready") == count == len(self.kits()))
        return self.kits()

    def taps(self) -> set[str]:
        return {name for name in links(self.node) if name.startswith("vlt")}

    def ports(self) -> set[str]:
        return set(self.node.switch.vsctl("list-ports", BRIDGE).split())
