"""A node whose vmlinkd keeps a pool of ports made ahead."""

from __future__ import annotations

import json
from typing import Any

from bench.testbed.node import BIN, Node
from bench.testbed.switch import Switch
from tests.ovs.ovskit import BRIDGE, switch_of
from tests.ovs.test_attachments import links
from tests.waits import until

SIZE = 3
KUBELET = "IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop"


class Pooled:
    """A node with a pool of taps for the network `net`."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.settings = node.lab.dir / "vmlinkd.yaml"
        self.pod = node.pod()

    @property
    def switch(self) -> Switch:
        return switch_of(self.node)

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
        conf = self.conf(**change)
        return self.node.call(verb, conf, container, self.pod, CNI_ARGS=KUBELET).expect()

    def told(self) -> dict[str, Any]:
        """What `vmlinkctl pool` says about the only pool; empty if there is none."""
        out = self.node.run(self.node.ctl("pool", "--json")).stdout
        pools: list[dict[str, Any]] = json.loads(out)
        return (pools or [{}])[0]

    def kits(self) -> set[str]:
        paths = self.node.run_dir.glob("pool/*/*.json")
        return {path.stem for path in paths if path.name != "pool.json"}

    def fill(self, count: int = SIZE) -> set[str]:
        """Wait until there are `count` kits and no work is under way; return the kits."""
        until(lambda: self.told().get("ready") == count == len(self.kits()))
        return self.kits()

    def taps(self) -> set[str]:
        return {name for name in links(self.node) if name.startswith("vlt")}

    def ports(self) -> set[str]:
        return set(self.switch.vsctl("list-ports", BRIDGE).split())


def tap_of(result: dict[str, Any]) -> str:
    return str(result["interfaces"][1]["name"])
