"""The steps of Open vSwitch as an uplink: the bridge, the port's rows, ovs-vswitchd's answer."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field, replace

from cni.attach.context import Context, Node
from cni.attach.plan import Step
from cni.config.network import Bandwidth, NetConf
from cni.config.uplinks import OvsUplink
from cni.errors import BadConfig, CheckFailed, DeadlineExceeded, NotReady, SwitchRefused, TryAgain
from cni.kernel import ethtool, redirect
from cni.kernel.netlink import NotFound
from cni.modes.steps.links import expect_link, need_index
from cni.ovs import ovn, port_ops
from cni.ovs.operations import Pending, View
from cni.ovs.port_ops import VHOSTUSER, Port
from cni.spec.types import AttachmentKey

_DEFAULT_MTU = 1500
_OVN_MTU = 1400  # br-int's own is no measure: it follows its ports'
_STATUS_SECONDS = 2
_EXPLAIN_SECONDS = 1
_DPDK = "set other_config:dpdk-init=true in the table Open_vSwitch and datapath_type=netdev"


def ready(node: Node, uplink: OvsUplink, dpdk: bool) -> None:
    """STATUS of a network on Open vSwitch. Raises NotReady."""
    try:
        view = node.ovs.look(_STATUS_SECONDS)
    except TryAgain as e:
        raise NotReady(e.msg) from e
    if not view.connected:
        raise NotReady(node.ovs.no_answer())
    bridges, bridge = view.bridges or {}, uplink.bridge
    if bridge not in bridges:
        raise NotReady(port_ops.missing_bridge(bridge, bridges))
    if dpdk:
        _require_dpdk(view, bridge)
    elif bridges[bridge] == "netdev" and (reason := redirect.supported()["cls_bpf"]):
        raise NotReady(f"the node is kept from hearing its pods by cls_bpf: {reason}")
    if uplink.ovn and (reason := ovn.refusal(view, bridge)):
        raise NotReady(reason)


def _require_dpdk(view: View, bridge: str) -> None:
    if not view.dpdk or (view.bridges or {})[bridge] != "netdev":
        raise NotReady(f"mode vhostuser: bridge {bridge} of Open vSwitch has no DPDK; {_DPDK}")


def port_steps(
    uplink: OvsUplink, name: str, conf: NetConf, kind: str = ""
) -> tuple[OvsBridge, tuple[Step, ...], OvsReady]:
    """What comes before the link `name` is made, right after it, and at the end of the plan."""
    rates = conf.bandwidth if conf.bandwidth and conf.switch_limits else Bandwidth()
    ids, dpdk = tuple(uplink.external_ids.items()), bool(kind)
    lport = uplink.external_ids.get(ovn.IFACE_ID, "") if uplink.ovn else ""
    mtu = conf.mtu or (_OVN_MTU if uplink.ovn else 0)
    policed = bool(rates.egress_rate) and not dpdk
    where = (uplink.bridge, name, kind, uplink.vlan, uplink.trunk)
    port = OvsPort(*where, ids, astuple(rates), policed, uplink.ovn)
    return (
        OvsBridge(uplink.bridge, mtu, dpdk, uplink.ovn),
        (port,) if dpdk else (Unheard(name), port),
        OvsReady(name, policed, lport),
    )


@dataclass(frozen=True)
class OvsBridge(Step):
    """The bridge, which must be there. Without an `mtu` the port takes that of its local port."""

    bridge: str
    mtu: int
    dpdk: bool
    ovn: bool = False

    def do(self, cx: Context) -> None:
        view = cx.node.ovs.look(cx.cancel.remaining())
        bridges = view.bridges or {}
        if self.bridge not in bridges:
            raise BadConfig(port_ops.missing_bridge(self.bridge, bridges))
        if self.dpdk:
            _require_dpdk(view, self.bridge)
        if self.ovn and (reason := ovn.wrong_bridge(view, self.bridge)):
            raise BadConfig(reason)
        # The userspace datapath would pass checksums on that the sender left to the hardware.
        userspace = bridges[self.bridge] == "netdev"
        cx.facts["offload"] = not userspace or view.userspace_tso
        cx.facts["userspace"] = userspace
        cx.facts["mtu"] = self.mtu or _local_mtu(cx, self.bridge)

    def renew(self, cx: Context, former: AttachmentKey) -> None:
        self.check(cx)


def _local_mtu(cx: Context, bridge: str) -> int:
    try:
        return cx.host_netlink.mtu(bridge)
    except NotFound:
        return _DEFAULT_MTU


@dataclass(frozen=True)
class Unheard(Step):
    """The userspace datapath gets copies of what a port receives. The node's own stack, which gets
    it as well, would answer for its addresses, whatever VLAN the port is in.

    Source: Open vSwitch manual, "Open vSwitch without Kernel Support", firewall rules.
    """

    name: str

    def do(self, cx: Context) -> None:
        if cx.facts["userspace"]:
            index = need_index(cx.host_netlink, self.name)
            cx.host_netlink.batch(*redirect.ignore(index))

    def renew(self, cx: Context, former: AttachmentKey) -> None:
        self.check(cx)

    def check(self, cx: Context) -> None:
        if not cx.facts["userspace"]:
            return
        link = expect_link(cx.host_netlink, self.name, "in the host's namespace")
        if not redirect.ignores(cx.host_netlink, link.index):
            raise CheckFailed(f"{self.name}: the node's own stack hears what the pod sends")


@dataclass(frozen=True)
class OvsPort(Step):
    """The port's rows. They are committed while the steps after this one work."""

    bridge: str
    name: str
    type: str
    vlan: int
    trunk: tuple[int, ...]
    external_ids: tuple[tuple[str, str], ...] = field(compare=False)
    limits: tuple[int, int, int, int] = field(compare=False)  # as in Bandwidth
    policed: bool  # which can be seen at a port's start alone: no kit is like that
    ovn: bool = False

    def do(self, cx: Context) -> None:
        database = cx.node.ovs
        cx.pending_port = database.submit(port_ops.Add(database.owner, cx.key, self._port(cx)))

    def bind(self, cx: Context) -> None:
        cx.pending_port = self._rebind(cx, AttachmentKey.of_kit(cx.key.kit), cx.key)

    def renew(self, cx: Context, former: AttachmentKey) -> None:
        pending = self._rebind(cx, former, cx.key)
        pending.wait(cx.cancel.remaining(), cx.node.ovs.no_answer())

    def _rebind(self, cx: Context, old: AttachmentKey, new: AttachmentKey) -> Pending:
        database = cx.node.ovs
        return database.submit(port_ops.Bind(database.owner, old, new, self._port(cx)))

    def _port(self, cx: Context) -> Port:
        macs = {} if cx.key.pooled else {"attached-mac": cx.facts["mac"]}
        port = Port(
            self.bridge,
            self.name,
            self.type,
            self.vlan,
            self.trunk,
            external_ids={**macs, **dict(self.external_ids)},
            bandwidth=Bandwidth(*self.limits) if any(self.limits) else None,
            ovn=self.ovn and not cx.key.pooled,
        )
        if not self.type:  # a link of the kernel has its MTU from us
            return port
        there = {"vhost-server-path": cx.facts["socket"]} if self.type == VHOSTUSER else {}
        return replace(port, mtu=cx.facts["mtu"], options=there)

    def undo(self, cx: Context) -> None:
        never_sent = cx.pending_port is not None and cx.pending_port.abandon()
        if never_sent and not cx.key.kit:
            return
        database = cx.node.ovs
        removal = database.submit(port_ops.Remove(database.owner, cx.key))
        removal.wait(cx.cancel.remaining(), database.no_answer())

    def check(self, cx: Context) -> None:
        database = cx.node.ovs
        looked = database.submit(port_ops.Check(cx.key, self._port(cx)))
        looked.wait(cx.cancel.remaining(), database.no_answer())


@dataclass(frozen=True)
class OvsReady(Step):
    """Waits until ovs-vswitchd has made the port, and OVN installed the `logical` one, if any."""

    name: str
    policed: bool
    logical: str = ""

    def do(self, cx: Context) -> None:
        assert cx.pending_port, "OvsPort comes before"
        late = f"ovs-vswitchd has not made port {self.name} in time; is it running?"
        view = cx.node.ovs.look(0)
        try:
            cx.pending_port.wait(
                cx.cancel.remaining(), late if view.connected else cx.node.ovs.no_answer()
            )
        except DeadlineExceeded as e:
            self._explain(cx, e)
        if self.policed:
            self._require_policing(cx)

    def _explain(self, cx: Context, late: DeadlineExceeded) -> None:
        """Raise what tells most; only the database's thread knows what OVN has answered."""
        view = cx.node.ovs.look(0)
        if not self.logical or not view.connected:
            raise late
        explanation = ovn.Explain(self.name, self.logical, view.external_ids.get("ovn-remote", ""))
        cx.node.ovs.submit(explanation).wait(_EXPLAIN_SECONDS, late.msg)

    def _require_policing(self, cx: Context) -> None:
        """ovs-vswitchd only logs that the kernel refused."""
        if cx.facts["userspace"]:  # which takes its copies before the kernel polices
            raise SwitchRefused(
                f"bandwidth.egressRate: the userspace datapath cannot police {self.name}; use mode "
                "tc or vhostuser, or leave the rate out"
            )
        index = cx.host_netlink.index(self.name)
        if index is None or not cx.host_netlink.filters(index):
            raise SwitchRefused(
                f"bandwidth.egressRate: ovs-vswitchd cannot police {self.name}; load the kernel's "
                "act_police and cls_matchall, or leave the rate out"
            )


@dataclass(frozen=True)
class FinishedChecksums(Step):
    """What the pod sends has its checksums when the switch passes unfinished ones on."""

    ifname: str

    def do(self, cx: Context) -> None:
        if not cx.facts["offload"]:
            with cx.in_pod():
                ethtool.stop_tx_checksum(self.ifname)

    def check(self, cx: Context) -> None:
        if cx.facts["offload"]:
            return
        with cx.in_pod():
            if ethtool.tx_checksum(self.ifname):
                raise CheckFailed(f"{self.ifname}: expected tx checksum offload off, found on")
