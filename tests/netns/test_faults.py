"""Every step of every plan goes wrong in every way, and nothing may remain.

The plans are asked for their steps: a new step, mode or uplink is covered without a change here.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from bench.testbed import switch
from bench.testbed.slowness import SLOWNESS
from cni.attach.plan import Step
from cni.kernel import redirect
from cni.modes import MODES
from tests.netns.attach_ways import EXECUTED, KEY, WAYS, Way, vlan_missing
from tests.netns.faultlab import Lab, Zygote, held, opened, prepared
from tests.waits import threads, until


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: way.name)
def way(request: pytest.FixtureRequest) -> Way:
    way = request.param
    assert isinstance(way, Way)
    if "vlan" in way.conf.get("linux", {}) and vlan_missing():
        pytest.skip(f"VLANs do not work on bridges here: {vlan_missing()}")
    if reason := redirect.supported().get(way.conf["redirect"], ""):
        pytest.skip(reason)
    if way.switch and (reason := switch.missing(dpdk=way.switch == "dpdk")):
        pytest.skip(reason)
    return way


@pytest.fixture
def switched() -> None:
    if reason := switch.missing():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


def test_every_step_and_mode_is_there() -> None:
    ours = {name for name, kind in Step.kinds.items() if kind.__module__.startswith("cni.")}
    assert {step for way in WAYS for step in way.steps} == {*ours, "Commit"}
    assert {way.conf["mode"] for way in WAYS} == set(MODES)


def test_nothing_goes_wrong(lab: Lab) -> None:
    """Each way once: what CI runs in the kernel lab."""
    added = lab.call("ADD").expect()
    lab.call("CHECK", prevResult=added).expect()
    for _ in range(2):
        lab.call("DEL").expect()
        lab.note("DEL")
    assert not lab.leaks


@pytest.mark.parametrize("when", ["before", "after"])
def test_error_in_add(lab: Lab, when: str) -> None:
    for step in lab.way.steps:
        lab.aim(step, lab.way.phase(step), when, "error")
        answer = lab.call("ADD")
        lab.mend()
        assert (answer.code, answer.out["code"]) == (100, 100)
        assert f"injected {when} {step}.{lab.way.phase(step)}" in answer.out["msg"]
        lab.note(step)
        lab.call("ADD").expect()
        lab.call("DEL").expect()
        lab.note(f"{step}, attached again")
    assert not lab.leaks


@pytest.mark.parametrize("when", ["before", "after"])
def test_kill_in_add(lab: Lab, when: str) -> None:
    for step in lab.way.steps:
        lab.aim(step, lab.way.phase(step), when, "kill")
        assert lab.call("ADD").code == 11
        lab.died()
        lab.node.start()
        done = (step, when) == ("Commit", "after")
        if not done and EXECUTED not in lab.way.name:
            lab.note(f"{step}, recovered")
        lab.call("DEL").expect()
        lab.note(step)
    assert not lab.leaks


def test_client_gone_during_add(lab: Lab) -> None:
    for step in lab.way.steps:
        with held(lab, step) as (client, _):
            client.kill()
            client.wait()
        if step == "Commit":  # the answer cannot be sent: only the end of all work is a sign
            assert lab.node.stop() == 0
            lab.node.start()
        else:
            lab.wait()
        lab.note(step)
    assert not lab.leaks


def undone(way: Way) -> tuple[str, ...]:
    return tuple(step for step in way.steps if step != "Commit")


@pytest.mark.parametrize("when", ["before", "after"])
def test_error_in_del(lab: Lab, when: str) -> None:
    for step in undone(lab.way):
        lab.call("ADD").expect()
        lab.aim(step, "undo", when, "error")
        answer = lab.call("DEL")
        assert answer.code == 100
        assert f"injected {when} {step}.undo" in answer.out["msg"]
        assert lab.records()
        lab.mend()
        lab.call("DEL").expect()
        lab.note(step)
    assert not lab.leaks


def test_error_in_the_undo_of_add(lab: Lab) -> None:
    """The first error is the one that is told; the record stays for DEL."""
    for step in undone(lab.way):
        with held(lab, lab.way.steps[-2]) as (client, _):
            client.kill()
            client.wait()
            lab.aim(step, "undo", "before", "error")
        assert lab.node.stop() == 0
        assert lab.records()
        lab.node.start()  # what it cannot undo it keeps, and serves all the same
        assert lab.records()
        lab.mend()
        lab.call("DEL").expect()
        lab.note(step)
    assert not lab.leaks


def test_kill_in_del(lab: Lab) -> None:
    for step in undone(lab.way):
        lab.call("ADD").expect()
        lab.aim(step, "undo", "after", "kill")
        assert lab.call("DEL").code == 11
        lab.died()
        lab.node.start()
        lab.call("DEL").expect()
        lab.note(step)
    assert not lab.leaks


POOLED = next(way for way in WAYS if way.prepared)


def test_kill_while_kits_are_made(zygote: Zygote, switched: None) -> None:
    with prepared(zygote, POOLED) as node, opened(node, POOLED) as lab:
        for step in POOLED.prepared:
            lab.kits()
            lab.aim(step, "do", "after", "kill")
            assert lab.node.call("ADD", POOLED.stdin(node), KEY.container_id, lab.pod).code == 0
            lab.died()
            lab.node.start()
            lab.call("DEL").expect()
            lab.note(step)
        assert not lab.leaks


def test_what_goes_wrong_as_a_kit_goes_back(zygote: Zygote, switched: None) -> None:
    with prepared(zygote, POOLED) as node:
        node.settings.write_text("pools: {net: {tap: {size: 2, refill_below: 1}}}\n")
        with opened(node, POOLED) as lab:
            for step in POOLED.prepared:
                for when in ("before", "after"):
                    lab.call("ADD").expect()
                    lab.aim(step, "renew", when, "error")
                    lab.call("DEL").expect()
                    lab.mend()
                    lab.note(f"{step}.renew, error {when}")
                lab.call("ADD").expect()
                lab.aim(step, "renew", "after", "kill")
                assert lab.call("DEL").code == 11
                lab.died()
                lab.node.start()
                lab.call("DEL").expect()
                lab.note(f"{step}.renew, killed")
            assert not lab.leaks


def test_gc_goes_on_past_errors(zygote: Zygote) -> None:
    with prepared(zygote, WAYS[0]) as node, opened(node, WAYS[0]) as lab:
        conf = lab.way.stdin(lab.node) | {"cniVersion": "1.1.0"}
        pods = {name: lab.node.pod() for name in ("a", "b")}
        for name, pod in pods.items():
            lab.node.call("ADD", conf, name, pod).expect()
        lab.aim("Veth", "undo", "after", "error")
        conf["cni.dev/valid-attachments"] = []
        answer = lab.node.call("GC", conf)
        assert answer.code == 100
        assert {name for name in pods if f"{name}/eth0: " in answer.out["msg"]} == set(pods)
        lab.mend()
        lab.node.call("GC", conf).expect()
        assert not lab.remains()
        for pod in pods.values():
            lab.node.lab.drop(pod)


def test_second_sigterm_hits_nothing(zygote: Zygote) -> None:
    """A descriptor that the first one closed has another owner when the second one comes."""
    way = next(way for way in WAYS if {"Bridge", "Tap"} < {*way.steps})
    with prepared(zygote, way) as node, opened(node, way) as lab:
        daemon = lab.node.daemon
        assert daemon
        with held(lab, "Bridge") as (client, go_on_to):
            idle = threads(daemon.pid)
            daemon.send_signal(signal.SIGTERM)
            until(lambda: threads(daemon.pid) < idle)
            go_on_to("Tap")
            daemon.send_signal(signal.SIGTERM)
        assert client.wait(20 * SLOWNESS) == 0
        assert daemon.wait(20 * SLOWNESS) == 0
        lab.node.daemon = None
        lab.node.start()
        lab.call("DEL").expect()
        assert not lab.remains()
