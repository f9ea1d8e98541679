"""Who has a logical port, of the attachments whose ADDs are under way at the same time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from cni.errors import AttachmentExists
from cni.modes.steps.links import Nic
from cni.modes.steps.ovs_port import OvsPort
from cni.ovs.ovn import Claims
from cni.spec.types import AttachmentKey
from tests.unit.purekit import context

OLD, NEW = AttachmentKey("c1", "eth0"), AttachmentKey("c2", "eth0")


Take = Callable[[AttachmentKey, float], None]  # a time of 0 releases


@pytest.fixture
def take() -> Take:
    claims = Claims()

    def taken(key: AttachmentKey, began: float) -> None:
        if began:
            with claims.taken("p.shop", key, began):
                pass
        else:
            claims.release(key)

    return taken


def test_the_add_that_came_last_has_it(take: Take) -> None:
    take(OLD, 1)
    take(NEW, 2)
    with pytest.raises(AttachmentExists, match=r"p\.shop belongs to c2/eth0, whose ADD came after"):
        take(OLD, 1)
    take(OLD, 3)  # the runtime has sent it again: it knows the sandbox still


def test_what_is_released_is_free(take: Take) -> None:
    take(NEW, 2)
    take(OLD, 0)
    with pytest.raises(AttachmentExists):
        take(OLD, 1)
    take(NEW, 0)
    take(OLD, 1)


class Committed:
    """A database that has committed whatever it is asked for, and an operation of it."""

    owner = "test"

    def submit(self, _operation: object) -> Committed:
        return self

    def wait(self, _seconds: float, _late: str) -> None:
        return

    def no_answer(self) -> str:
        return ""


def test_a_port_that_goes_back_to_the_pool_leaves_its_logical_port() -> None:
    pooled = context(Nic("02:00:00:00:00:01", 1400), key=AttachmentKey.of_prepared("0" * 12))
    pooled.node = replace(pooled.node, ovs=cast(Any, Committed()), logical_ports=Claims())
    claims = pooled.node.logical_ports
    with claims.taken("p.shop", NEW, 2):
        pass
    port = OvsPort("br-int", "p0", "", 0, (), (("iface-id", "p.shop"),), (0, 0, 0, 0), False, True)
    port.renew(pooled, NEW)
    with claims.taken("p.shop", OLD, 1):
        pass
