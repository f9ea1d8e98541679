"""The JSON parser for OVSDB: messages cut anywhere, several in one piece, text that is not JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni.ovs.json_parser import Parser

MESSAGES: list[Any] = [
    {"id": 1, "result": [{"uuid": ["uuid", "x"]}, {}], "error": None},
    {"method": "update3", "params": [None, "id", {"Port": {"u": {"modify": {"name": 'a"}{\\'}}}}]},
    {},
    {"text": "é \ud83d\ude00 }}}", "nested": {"a": {"b": {"c": "\\\\"}}}},
]


def parse_all(text: str, size: int) -> tuple[list[Any], Parser]:
    """Feed the text in pieces, as ovs.jsonrpc.Connection.recv does."""
    found, parser = [], Parser()
    for start in range(0, len(text), size):
        piece = text[start : start + size]
        while piece:
            piece = piece[parser.feed(piece) :]
            if parser.is_done():
                found.append(parser.finish())
                parser = Parser()
    return found, parser


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 4096])
@pytest.mark.parametrize("between", ["", "\n", "  \t"])
def test_messages_come_apart_wherever_the_pieces_end(size: int, between: str) -> None:
    text = between.join(json.dumps(m, ensure_ascii=False) for m in MESSAGES * 3)
    found, rest = parse_all(text, size)
    assert found == MESSAGES * 3
    assert not rest.is_done()


def test_a_message_that_is_not_whole_is_waited_for() -> None:
    parser = Parser()
    assert parser.feed('{"a": "x') == 8
    assert not parser.is_done()
    assert parser.feed('"}{"b"') == 2
    assert parser.finish() == {"a": "x"}


@pytest.mark.parametrize("text", ["x", "{,}", "true{}"])
def test_what_is_not_json_is_told(text: str) -> None:
    """The result is then a string: ovs.jsonrpc closes the connection and gives it as the reason."""
    parser = Parser()
    parser.feed(text)
    assert parser.is_done()
    assert parser.finish().startswith("not JSON: ")
