"""`--peer TYPE=PATH[,conf.json]`: what is accepted, and the error when it is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.contenders.peers import Peer, PeerError, parse


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "other-cni"
    path.touch(mode=0o755)
    return path


def written(tmp_path: Path, conf: Any) -> Path:
    path = tmp_path / "conf.json"
    path.write_text(conf if isinstance(conf, str) else json.dumps(conf))
    return path


def test_a_peer_without_a_configuration(plugin: Path) -> None:
    assert parse((f"other-cni={plugin}",)) == [Peer("other-cni", plugin, {})]


def test_a_peer_with_a_configuration(plugin: Path, tmp_path: Path) -> None:
    conf = {"type": "other-cni", "bridge": "br7"}
    text = f"other-cni={plugin},{written(tmp_path, conf)}"
    assert parse((text,)) == [Peer("other-cni", plugin, conf)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("other-cni", "expected TYPE=PATH"),
        ("other-cni=", "expected TYPE=PATH"),
        ("a/b={plugin}", "TYPE may have"),
        ("={plugin}", "TYPE may have"),
        ("other-cni=/nowhere/at/all", "/nowhere/at/all is no program"),
        ("other-cni={dir}", "is no program"),
        ("other-cni={plugin},/nowhere.json", "cannot be read as JSON"),
    ],
)
def test_what_cannot_be_used_is_refused(plugin: Path, tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(PeerError, match=said) as caught:
        parse((text.format(plugin=plugin, dir=tmp_path),))
    assert str(caught.value).startswith("--peer ")


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ("{", "cannot be read as JSON"),
        ([1], "expected an object"),
        ({"plugins": []}, "list of plugins"),
        ({"type": "bridge"}, "has type 'bridge'"),
    ],
)
def test_a_configuration_of_something_else_is_refused(
    plugin: Path, tmp_path: Path, conf: Any, said: str
) -> None:
    with pytest.raises(PeerError, match=said):
        parse((f"other-cni={plugin},{written(tmp_path, conf)}",))


def test_the_same_type_twice_is_refused(plugin: Path) -> None:
    with pytest.raises(PeerError, match="there twice"):
        parse((f"a={plugin}", f"a={plugin}"))
