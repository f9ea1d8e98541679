"""python-ovs's parser replaced: messages in pieces of any size, several in one piece, garbage."""

import json

import pytest

from cni.ovs.json_parser import Parser

MESSAGES = [
    {"id": 1, "result": [{"uuid": ["uuid", "x"]}, {}], "error": None},
    {"method": "update3", "params": [None, "id", {"Port": {"u": {"modify": {"name": 'a"}{\\'}}}}]},
    {},
    {"text": "é \ud83d\ude00 }}}", "nested": {"a": {"b": {"c": "\\\\"}}}},
]


def parse_all(text, size):
    """As ovs.jsonrpc.Connection.recv does."""
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
def test_messages_come_apart_wherever_the_pieces_end(size, between):
    text = between.join(json.dumps(m, ensure_ascii=False) for m in MESSAGES * 3)
    found, rest = parse_all(text, size)
    assert found == MESSAGES * 3
    assert not rest.is_done()


def test_a_message_that_is_not_whole_is_waited_for():
    parser = Parser()
    assert parser.feed('{"a": "x') == 8
    assert not parser.is_done()
    assert parser.feed('"}{"b"') == 2
    assert parser.finish() == {"a": "x"}


@pytest.mark.parametrize("text", ["x", "{,}", "true{}"])
def test_what_is_not_json_is_told(text):
    """By a text, which ovs.jsonrpc takes for the reason to give the connection up."""
    parser = Parser()
    parser.feed(text)
    assert parser.is_done()
    assert parser.finish().startswith("not JSON: ")
