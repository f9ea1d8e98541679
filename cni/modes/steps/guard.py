"""The guard on the guest's link: shut until it is up, opened when the addresses are known."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.facts import Fact, Facts
from cni.attach.plan import Kinds, Step
from cni.config.guard import GuardConf
from cni.errors import CheckFailed, NotReady
from cni.kernel import bpf, redirect
from cni.kernel.guard import hook, program
from cni.kernel.guard.program import Guard
from cni.kernel.guard.values import Values
from cni.kernel.netlink import Netlink, NotFound
from cni.modes.steps.links import IN_HOST, IN_POD, Nic, expect_link
from cni.spec.types import Result


@dataclass(frozen=True)
class GuardProgram(Fact):
    """The id of the guard's program, and whether tcx has it."""

    id: int
    tcx: bool


@dataclass(frozen=True)
class GuardInHand(Fact):
    """The descriptors of the guard, until it is opened, and the hook that it gets."""

    stored: ClassVar[bool] = False
    guard: Guard
    in_pod: bool
    egress: bool
    tcx: bool


@dataclass(frozen=True)
class GuardedAddresses(Fact):
    """The addresses that the guard lets pass; `any`: all of them, on a layer-2 network."""

    addresses: tuple[str, ...]
    any: bool


@dataclass(frozen=True)
class TakeGuard(Step):
    """A copy of the guard for the link that the next step makes; it lets nothing pass yet.

    That step calls `hang_guard` before it sets the link up, and takes the guard away with the link.
    With `egress` it judges what the link sends, as a macvtap does; otherwise what comes in.
    `engine` is the redirect's: on a link with tcx the guard has to be there, too.
    """

    provides: ClassVar[Kinds] = (GuardInHand, GuardProgram)
    in_pod: bool
    egress: bool
    engine: str

    def do(self, cx: Context) -> None:
        tcx = _by_tcx(self.engine)
        _require(tcx)
        guard = program.SHELF.take()
        cx.facts.put(GuardInHand(guard, self.in_pod, self.egress, tcx))
        cx.facts.put(GuardProgram(guard.id, tcx))

    def undo(self, cx: Context) -> None:
        if in_hand := cx.facts.get(GuardInHand):
            in_hand.guard.close()


def hang_guard(cx: Context, netlink: Netlink, index: int) -> None:
    """Attach the guard, if the plan has one, to a link that is not up yet. Raises NetlinkError."""
    in_hand = cx.facts.get(GuardInHand)
    if in_hand is None:
        return
    if not in_hand.tcx:
        hook.attach(netlink, index, in_hand.guard.fd, egress=in_hand.egress)
        return
    with _namespace(cx, in_hand.in_pod):
        bpf.attach_tcx(in_hand.guard.fd, index)


def _namespace(cx: Context, in_pod: bool) -> AbstractContextManager[None]:
    return cx.in_pod() if in_pod else nullcontext()


@dataclass(frozen=True)
class OpenGuard(Step):
    """The guard of `link` lets pass what is the guest's own and what the network allows.

    `chained` are the addresses of the plugin before us, in the place of IPAM's.
    """

    needs: ClassVar[Kinds] = (Nic, GuardInHand, GuardProgram)
    provides: ClassVar[Kinds] = (GuardedAddresses,)
    link: str
    in_pod: bool
    egress: bool
    chained: tuple[str, ...]
    allowed: tuple[str, ...]
    macs: tuple[str, ...]
    vlans: tuple[int, ...]
    ether_types: tuple[int, ...]
    dhcp_server: bool
    router: bool
    l2control: bool

    def do(self, cx: Context) -> None:
        own = self.chained or tuple(ip.bare for ip in cx.addresses().ips)
        addresses = (*own, *self.allowed)
        cx.facts.put(GuardedAddresses(addresses, not addresses))
        guard = cx.facts[GuardInHand].guard
        guard.put(self._values(cx))
        guard.close()

    def _values(self, cx: Context) -> Values:
        own = cx.facts[GuardedAddresses]
        return Values(
            mac=cx.facts[Nic].mac,
            addresses=None if own.any else own.addresses,
            macs=self.macs,
            vlans=self.vlans,
            ether_types=self.ether_types,
            dhcp_server=self.dhcp_server,
            router=self.router,
            l2control=self.l2control,
        )

    def check(self, cx: Context) -> None:
        number = cx.facts[GuardProgram].id
        if self._attached(cx) != number:
            raise CheckFailed(f"{self.link}: expected the guard that ADD attached, found it gone")
        try:
            with program.opened(number) as guard:
                if not guard.has(self._values(cx)):
                    raise CheckFailed(f"{self.link}: the guard's values are not those of ADD")
        except NotFound as e:
            raise CheckFailed(f"{self.link}: the guard's program is gone") from e

    def _attached(self, cx: Context) -> int:
        netlink, where = (cx.pod_netlink, IN_POD) if self.in_pod else (cx.host_netlink, IN_HOST)
        index = expect_link(netlink, self.link, where).index
        if not cx.facts[GuardProgram].tcx:
            return hook.attached(netlink, index, egress=self.egress)
        with _namespace(cx, self.in_pod):
            return hook.attached_tcx(index)


@dataclass(frozen=True)
class GuardSteps:
    """The step before the guest's link is made, and the one once the addresses are known."""

    take: tuple[Step, ...] = ()
    open: tuple[Step, ...] = ()


def guard_steps(
    conf: GuardConf | None,
    link: str,
    *,
    in_pod: bool,
    egress: bool = False,
    engine: str = "cls_bpf",
    vlans: tuple[int, ...] = (),
    chained: tuple[str, ...] = (),
) -> GuardSteps:
    """Return the steps of the guard, none where `conf` is None."""
    if conf is None:
        return GuardSteps()
    opened = OpenGuard(
        link,
        in_pod,
        egress,
        chained,
        conf.allowed_addresses,
        conf.macs,
        vlans,
        conf.ether_types,
        conf.dhcp_server,
        conf.router,
        conf.l2control,
    )
    return GuardSteps((TakeGuard(in_pod, egress, engine),), (opened,))


def addresses_of(prev: Result | None, ifname: str) -> tuple[str, ...]:
    """Return the addresses that a prevResult has for an interface; those of no interface too.

    Where it does not name the interface (Calico, AWS), all of them are the interface's.
    """
    if prev is None:
        return ()
    named = [n for n, interface in enumerate(prev.interfaces) if interface.name == ifname]
    return tuple(
        ip.bare for ip in prev.ips if ip.interface is None or not named or ip.interface in named
    )


def drops_of(facts: Facts) -> dict[str, int]:
    """Return what an attachment's guard has dropped, by reason; {} where it has none.

    Raises NetlinkError.
    """
    made = facts.get(GuardProgram)
    if made is None:
        return {}
    try:
        with program.opened(made.id) as guard:
            return guard.drops()
    except NotFound:
        return {}


def require_guard(conf: GuardConf | None, engine: str = "cls_bpf") -> None:
    """Raise NotReady where the guard is to be and this node cannot have it.

    `engine` is the redirect's, on whose link the guard is.
    """
    if conf is not None:
        _require(_by_tcx(engine))


def _by_tcx(engine: str) -> bool:
    return engine != "cls_bpf" and redirect.choose(engine) == "tcx"


def _require(tcx: bool) -> None:
    remedy = "; or trust this network's guests with guard: false"
    if not tcx and (reason := redirect.supported()["cls_bpf"]):
        raise NotReady(f"guard: {reason}; load the kernel's cls_bpf{remedy}")
    try:
        program.require()
    except NotReady as e:
        raise NotReady(f"guard: {e.msg}{remedy}") from e
