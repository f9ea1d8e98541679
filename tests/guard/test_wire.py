"""The corpus through real descriptors: what arrives at the neighbour, and what is counted."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest
from scapy.layers.l2 import Ether

from bench.testbed.node import Node
from cni.kernel import redirect
from cni.kernel.guard import program
from cni.kernel.guard.values import Values
from tests.guard.corpus import CORPUS, STRICT
from tests.guard.frames import OWN, V4, V4_OTHER, VRRP, e4, eth, mac
from tests.guard.model import PASSES, Model
from tests.netns.wirelib import (
    POD4,
    POD_MAC,
    Attachment,
    Guest,
    Port,
    Topology,
    bridged,
    chained,
    mastered,
    unfinished,
)

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.xdist_group("guard on the wire"),
]
ALLOWED = list(STRICT.addresses or ())
GUARD = {"allowedAddresses": ALLOWED, "macs": [VRRP], "etherTypes": ["0x88b5"]}
FORMS: dict[str, Topology] = {
    **{f"tc, {x}": partial(bridged, redirect=x, mac=POD_MAC) for x in redirect.ENGINES},
    "tc, chained": chained,
    "tap": partial(bridged, mode="tap", mac=POD_MAC),
    "macvtap": partial(mastered, mac=POD_MAC),
    "macvtap, chained": partial(chained, mode="macvtap"),
}
# At ingress the kernel takes the tag out of a frame before any program, and drops it if it cannot.
UNSEEN = {"half a tag"}
MARK = 0x88B5


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as made:
        made.start()
        yield made


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Topology:
    engine = request.param.removeprefix("tc, ")
    if engine in redirect.ENGINES and (reason := redirect.supported()[engine]):
        pytest.skip(reason)
    return FORMS[request.param]


def own(frame: bytes) -> bytes:
    """The corpus is that of a guest with another MAC."""
    return frame.replace(mac(OWN), mac(POD_MAC))


def sent(guest: Guest, port: Port, frame: bytes, n: int) -> list[bytes]:
    """Send a frame and a mark behind it; return what arrives before the mark."""
    guest.send(frame)
    mark = eth(MARK, n.to_bytes(4, "big") + bytes(46), POD_MAC)
    guest.send(mark)
    arrived = []
    while (received := port.receive_any()) != mark:
        assert received is not None, "the mark is lost"
        arrived.append(received)
    return arrived


def as_sent(arrived: list[bytes], frame: bytes) -> bool:
    """Netfilter of a bridge cuts off what is behind the end of an IP packet."""
    return len(arrived) == 1 and arrived[0] in (frame, frame[: len(arrived[0])])


def drops(node: Node, attached: Attachment) -> dict[str, int]:
    told = node.run(node.ctl("show", "--json", attached.pod.name)).stdout
    counted: dict[str, int] = json.loads(told)[0]["drops"]
    return counted


def test_the_corpus(node: Node, form: Topology) -> None:
    with form(node, guard=GUARD) as attached:
        attached.add()
        port, guest = attached.port(), attached.guest()
        model = Model(Values(POD_MAC, (POD4, *ALLOWED), (VRRP,), (), (MARK,)))
        wrong, reasons = [], Counter[str]()
        for n, (name, (_, raw)) in enumerate(CORPUS.items()):
            frame = own(raw)
            reason = model.judge(frame)
            if name in UNSEEN:
                continue
            reasons[reason] += 1
            arrived = sent(guest, port, frame, n)
            if not as_sent(arrived, frame) if reason == PASSES else arrived:
                wrong.append((name, reason, [each.hex() for each in arrived]))
        assert wrong == []
        del reasons[PASSES]
        assert Counter({k: v for k, v in drops(node, attached).items() if v}) == reasons
        attached.node.call("CHECK", checked(attached), attached.pod.name, attached.pod).expect()


def checked(attached: Attachment) -> dict[str, object]:
    return {**attached.conf, "prevResult": attached.result}


def test_a_guard_is_there_where_the_network_asks_for_it(node: Node, form: Topology) -> None:
    stranger = own(e4(source=V4_OTHER))
    for guard, arrives in (({"guard": True}, False), ({}, True)):
        with form(node, **guard) as attached:
            attached.add()
            port, guest = attached.port(), attached.guest()
            guest.send(stranger)
            assert port.receive(3 if arrives else 0.2) == (stranger if arrives else None)


def test_a_frame_of_64_kib_is_judged_by_its_header(node: Node, form: Topology) -> None:
    with form(node, guard=GUARD) as attached:
        attached.add()
        port, guest = attached.port(vnet=True), attached.guest()
        for source, arrives in ((V4_OTHER, False), (V4, True)):
            ether = Ether(src=POD_MAC, dst="02:00:00:00:0f:01")
            flow = {"src": source, "dst": "10.77.0.99"}
            header, frame = unfinished(ether, flow, bytes(65000), segment=1400)
            guest.send(frame, header)
            assert (port.receive(3 if arrives else 0.2) is not None) == arrives
        assert drops(node, attached)["ip"] == 1


def test_check_misses_the_guard(node: Node) -> None:
    with bridged(node, mode="tap", guard=GUARD) as attached:
        attached.add()
        where = ["dev", attached.tap, "ingress", "pref", str(redirect.PRIORITY - 1)]
        node.run(["tc", "filter", "del", *where])
        answer = node.call("CHECK", checked(attached), attached.pod.name, attached.pod)
        assert "expected the guard that ADD attached" in answer.out["msg"]


def test_check_sees_other_values(node: Node) -> None:
    with bridged(node, guard=GUARD) as attached:
        attached.add()
        record = next((node.run_dir / "state").glob("*"))
        facts = json.loads(record.read_text().splitlines()[-1])["facts"]
        with program.opened(facts["GuardProgram"]["id"]) as guard:
            guard.put(Values(POD_MAC))
        answer = node.call("CHECK", checked(attached), attached.pod.name, attached.pod)
        assert "values are not those of ADD" in answer.out["msg"]


def test_a_restart_of_vmlinkd_keeps_every_rule() -> None:
    with Node() as node, bridged(node, guard=GUARD, mac=POD_MAC) as attached:
        node.start()
        attached.add()
        port, guest = attached.port(), attached.guest()
        assert sent(guest, port, own(e4(source=V4_OTHER)), 1) == []
        node.stop()
        assert sent(guest, port, own(e4(source=V4_OTHER)), 2) == []
        assert sent(guest, port, own(e4()), 3) == [own(e4())]
        node.start()
        assert drops(node, attached)["ip"] == 2
        node.call("CHECK", checked(attached), attached.pod.name, attached.pod).expect()
