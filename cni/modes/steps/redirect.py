"""Two links in the pod's namespace wired together, and one diverted into another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cni.attach.context import Context
from cni.attach.facts import Fact
from cni.attach.plan import Kinds, Step
from cni.kernel import redirect
from cni.modes.steps.links import IN_POD, expect_link, need_index


@dataclass(frozen=True)
class RedirectEngine(Fact):
    """The engine that redirects: a name of `cni.kernel.redirect.ENGINES`."""

    name: str


@dataclass(frozen=True)
class Redirect(Step):
    """What arrives on either link leaves by the other.

    `lasting`: the interface is another plugin's and stays, so the undo takes the redirect off it.
    """

    provides: ClassVar[Kinds] = (RedirectEngine,)
    ifname: str
    tap: str
    engine: str
    lasting: bool

    def do(self, cx: Context) -> None:
        engine = redirect.choose(self.engine)
        cx.facts.put(RedirectEngine(engine))
        interface = need_index(cx.pod_netlink, self.ifname)
        tap = need_index(cx.pod_netlink, self.tap)
        with cx.in_pod():
            redirect.attach(engine, cx.pod_netlink, interface, tap)

    def undo(self, cx: Context) -> None:
        engine = cx.facts.get(RedirectEngine)
        if self.lasting:
            _remove(cx, self.ifname, (engine.name,) if engine else redirect.ENGINES)

    def check(self, cx: Context) -> None:
        interface = expect_link(cx.pod_netlink, self.ifname, IN_POD).index
        tap = expect_link(cx.pod_netlink, self.tap, IN_POD).index
        with cx.in_pod():
            redirect.check(cx.facts[RedirectEngine].name, cx.pod_netlink, interface, tap)


@dataclass(frozen=True)
class Divert(Step):
    """What arrives at another plugin's interface comes in on the macvtap instead.

    The macvlan code below the macvtap would do that too, but it gives multicast to the namespace as
    well, and reassembles fragments of multicast packets.
    """

    ifname: str
    tap: str

    def do(self, cx: Context) -> None:
        netlink = cx.pod_netlink
        redirect.divert(netlink, need_index(netlink, self.ifname), need_index(netlink, self.tap))

    def undo(self, cx: Context) -> None:
        _remove(cx, self.ifname, ("cls_bpf",))

    def check(self, cx: Context) -> None:
        netlink = cx.pod_netlink
        interface = expect_link(netlink, self.ifname, IN_POD).index
        tap = expect_link(netlink, self.tap, IN_POD).index
        redirect.check_way("cls_bpf", netlink, interface, tap)


def _remove(cx: Context, ifname: str, engines: tuple[str, ...]) -> None:
    """Take our redirect off an interface that stays."""
    if cx.pod_or_none is None:
        return
    if index := cx.pod_netlink.index(ifname):
        with cx.in_pod():
            for name in engines:
                if _is_ours(cx, redirect.target_of(name, cx.pod_netlink, index)):
                    redirect.detach(name, cx.pod_netlink, index)


def _is_ours(cx: Context, target: int | None) -> bool:
    """Return whether a redirect to this ifindex is the attachment's (None: there is no redirect).

    The path, even the inode, of a namespace may be another pod's when an old DEL comes.
    """
    if target is None:
        return False
    link = cx.pod_netlink.link(index=target) if target else None
    return link is None or link.group == cx.key.group or link.name == cx.key.tap_link
