"""Frames cross a macvtap byte for byte in both directions.

Its namespace stays silent, whether a VMM has the macvtap open or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from bench.testbed.node import Node
from cni.kernel.rtnl_encode import mac_bytes
from tests.netns.nslib import present
from tests.netns.test_frames import ADDRESSES, FRAMES, FROM_GUEST, PROBES, SRC, answers, heard
from tests.netns.wirelib import POD4, POD6, POD_MAC, Guest, Port, Topology, chained, mastered

ON_A_NIC: dict[str, Topology] = {
    mode: partial(mastered, macvtap={"mode": mode}, mac=POD_MAC)
    for mode in ("bridge", "vepa", "private", "passthru")
}
FORMS = ON_A_NIC | {"chained": partial(chained, mode="macvtap")}
ALL_OF_THE_WIRE = ("passthru", "chained")


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def link(form: str, node: Node) -> Iterator[tuple[Port, Guest]]:
    """(port, guest) of one attachment, used for all frames."""
    with FORMS[form](node) as attached:
        attached.add()
        yield attached.port(), attached.guest()


@pytest.mark.parametrize("name", FRAMES)
def test_every_frame_crosses_unchanged(form: str, link: tuple[Port, Guest], name: str) -> None:
    port, guest = link
    frame = bytes(FRAMES[name])
    port.send(frame)
    if name == "strange destination" and form not in ALL_OF_THE_WIRE:
        assert guest.receive(0.1) is None
    else:
        _, header, received = present(guest.receive_with_header())
        assert received == frame
        assert header == bytes(10)
    # In mode bridge a frame to the macvtap's own MAC comes back to its own guest.
    answer = (frame[:6] if frame[0] & 1 else mac_bytes(SRC)) + mac_bytes(POD_MAC) + frame[12:]
    guest.send(answer)
    assert port.receive() == answer


def test_fragments_of_multicast_stay_fragments_in_a_chain(node: Node) -> None:
    everyone = Ether(src=SRC, dst="01:00:5e:01:02:03")
    whole = IP(src="10.77.0.99", dst="239.1.2.3") / UDP(sport=7, dport=9) / Raw(b"m" * 3000)
    fragments = [bytes(everyone / part) for part in whole.fragment(1000)]
    with chained(node, mode="macvtap") as attached:
        attached.add()
        port, guest = attached.port(), attached.guest()
        for fragment in fragments:
            port.send(fragment)
        assert [guest.receive() for _ in fragments] == fragments


@pytest.mark.parametrize("form", FORMS)
def test_nobody_answers_for_the_guest(node: Node, form: str) -> None:
    args: dict[str, Any] = {} if form == "chained" else {"args": {"cni": ADDRESSES}}
    with FORMS[form](node, v6=True, **args) as attached:
        result = attached.add()
        assert {ip["address"] for ip in result["ips"]} == {POD4 + "/24", POD6 + "/64"}
        port = attached.port()
        heard(port, 0.1)
        assert answers(port) == set()
        guest = attached.guest()
        assert answers(port) == set()
        received = {guest.receive() for _ in PROBES}
        assert received == {bytes(p) for p in PROBES.values()}
        guest.send(FROM_GUEST)
        assert heard(port, 0.1) == [FROM_GUEST]


def test_a_chained_interface_answers_again_after_del(node: Node) -> None:
    with chained(node, v6=True, mode="macvtap") as attached:
        port = attached.port()
        assert answers(port) == set(PROBES)
        attached.add()
        assert answers(port) == set()
        attached.delete()
        assert answers(port) == set(PROBES)


@pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "dual stack"])
@pytest.mark.parametrize("form", ["bridge", "chained"])
def test_the_namespace_says_nothing_by_itself(node: Node, form: str, v6: bool) -> None:
    with FORMS[form](node, v6=v6) as attached:
        port = attached.port()
        attached.add()
        assert heard(port, 1.1) == []
