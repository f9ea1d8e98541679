"""A mode that only the tests know goes through everything that vmlink's own modes go through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bench.testbed.node import PLUGINS, Answer
from cni.modes import MODES
from tests.netns import toy_mode
from tests.netns.attach_ways import EXECUTED, KEY, Way, ways
from tests.netns.faultlab import Lab, Zygote
from tests.netns.test_faults import (  # noqa: F401  # the fault table, untouched
    test_client_gone_during_add,
    test_error_in_add,
    test_error_in_del,
    test_error_in_the_undo_of_add,
    test_kill_in_add,
    test_kill_in_del,
)


def toy_ways() -> list[Way]:
    toy_mode.load()
    try:
        return list(ways(["toy"]))
    finally:
        del MODES["toy"]


@pytest.fixture(scope="module", params=toy_ways(), ids=lambda way: way.name)
def way(request: pytest.FixtureRequest) -> Way:
    made = request.param
    assert isinstance(made, Way)
    return made


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote(toy_mode.__name__)
    yield made
    made.close()


def test_the_mode_takes_part_with_each_of_its_uplinks() -> None:
    kinds = {key for each in toy_ways() for key in each.conf if key in ("linux", "ovs", "master")}
    assert kinds == {"linux"}
    assert {"ToyLink", "Configure", "Addresses", "Commit"} == {
        s for w in toy_ways() for s in w.steps
    }


def call(lab: Lab, verb: str, **change: Any) -> Answer:
    """A verb of CNI 1.1.0 that is about the network."""
    conf = {**lab.way.stdin(lab.node), "cniVersion": "1.1.0", **change}
    return lab.node.call(verb, conf, CNI_PATH=f"{lab.node.lab.dir}:{PLUGINS}")


def test_check_sees_what_is_there_and_what_is_not(lab: Lab) -> None:
    result = lab.call("ADD").expect()
    lab.call("CHECK", prevResult=result).expect()
    lab.node.run(["ip", "link", "del", KEY.ifname], lab.pod)
    answer = lab.call("CHECK", prevResult=result)
    assert (answer.code, "expected in the pod's namespace" in answer.out["msg"]) == (104, True)
    lab.call("DEL").expect()
    assert not lab.remains()


def test_del_without_a_record(lab: Lab) -> None:
    lab.call("ADD").expect()
    for path in lab.records():
        path.unlink()
    lab.call("DEL").expect()
    assert not lab.remains()


def test_gc_takes_what_is_no_longer_valid(lab: Lab) -> None:
    lab.call("ADD").expect()
    valid = [{"containerID": KEY.container_id, "ifname": KEY.ifname}]
    call(lab, "GC", **{"cni.dev/valid-attachments": valid}).expect()
    assert lab.records()
    call(lab, "GC", **{"cni.dev/valid-attachments": []}).expect()
    assert not lab.records()
    assert not lab.remains()


def test_status(lab: Lab) -> None:
    answer = call(lab, "STATUS")
    if EXECUTED in lab.way.name:  # Debian's plugin is older than CNI 1.1.0
        assert (answer.code, answer.out["msg"].startswith("cniVersion: ")) == (50, True)
    else:
        answer.expect()
