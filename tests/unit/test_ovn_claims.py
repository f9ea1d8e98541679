"""Who has a logical port, of the attachments whose ADDs are under way at the same time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cni.errors import AttachmentExists
from cni.ovs.ovn import Claims
from cni.spec.types import AttachmentKey

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
