"""What the tests of macvtaps share."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from bench.testbed.node import Node
from cni.spec.types import AttachmentKey
from tests.netns.wirelib import Attachment, Topology, chained, mastered

FORMS: dict[str, Topology] = {"master": mastered, "chained": partial(chained, mode="macvtap")}


def show(node: Node, name: str, where: Path) -> Any:
    """What `ip address` tells of a link."""
    told = node.run(["ip", "-json", "-details", "address", "show", "dev", name], where).stdout
    return json.loads(told)[0]


def refused(attached: Attachment, *words: str) -> int:
    """The code of an ADD that fails with a message of these words, and leaves no macvtap."""
    answer = attached.node.call("ADD", attached.conf, attached.pod.name, attached.pod)
    assert not [word for word in words if word not in answer.out["msg"]], answer.out
    left = attached.node.run(["ip", "-details", "link"], attached.pod).stdout
    assert "macvtap" not in left
    return answer.code


def numbers(attached: Attachment) -> range:
    """The ifindexes that vmlink tries for the pod's macvtap, in this order."""
    return AttachmentKey(attached.pod.name, "eth0").ifindexes
