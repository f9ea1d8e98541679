"""conf/: each example is a configuration that vmlink takes, and each mode has one."""

import json
from pathlib import Path

import pytest

from cni.config import network as config
from cni.modes import MODES
from cni.spec.types import Request
from tests.unit.test_config import PREV

CONF = Path(__file__).parents[2] / "conf"
LISTS = {path.name: json.loads(path.read_text()) for path in CONF.glob("*.conflist")}


def parsed(name):
    """Vmlink's own entry, as a runtime would hand it over."""
    given = LISTS[name]
    (place,) = [n for n, p in enumerate(given["plugins"]) if p["type"] == "vmlink"]
    conf = {**given["plugins"][place], "cniVersion": given["cniVersion"], "name": given["name"]}
    conf |= {"prevResult": PREV} if place else {}
    return config.parse(Request("ADD", given["cniVersion"], conf, b"", {}, {}))


@pytest.mark.parametrize("name", LISTS)
def test_an_example_is_taken(name):
    assert parsed(name).mode in MODES


def test_each_mode_has_an_example():
    assert {parsed(name).mode for name in LISTS} == set(MODES) == set(config.MODES)
