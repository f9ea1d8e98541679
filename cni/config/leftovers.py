"""What a DEL makes of a configuration that an ADD would be refused for. Pure.

Nothing may be there to undo: then most often the ADD was refused. But the configuration may also
have been changed since the ADD, and its record lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cni.config import network
from cni.config.mode_rules import Rules
from cni.config.network import NetConf
from cni.config.uplinks import UPLINKS, Chained
from cni.errors import VmlinkError
from cni.spec.types import Request

_ARGS = "CNI_ARGS"  # stands beside the keys of the configuration; it cannot be one of them
_MANY = 32  # keys of a section: of larger ones no part is tried, which would take too long

Document = dict[str, Any]


def possible(request: Request, rules: Rules) -> tuple[NetConf, ...]:
    """Return, for each mode that the attachment may have had, what can be read of its network.

    There is always one. What cannot be read beside the rest is left out, as if it were not there.
    """
    named = [kind for kind in UPLINKS if kind in request.conf]
    found = [conf for kind in named or [Chained.kind] for conf in _on(kind, request, rules)]
    return tuple(found or _on(Chained.kind, request, rules))


def _on(kind: str, request: Request, rules: Rules) -> list[NetConf]:
    known = network.known_keys(rules) - {*UPLINKS, "mode"}
    offered = {key: value for key, value in request.conf.items() if key in known}
    if not request.conf["name"]:  # which IPAM keeps its addresses by
        offered.pop("ipam", None)
    found = []
    for mode in (mode for mode, each in rules.items() if kind in each.uplinks):
        start: Document = {"name": request.conf["name"], "mode": mode}

        def reads(document: Document) -> bool:
            return _read(document, request, rules) is not None

        if kind != Chained.kind:
            start = _grown(start, {kind: request.conf[kind]}, reads)
        if kind == Chained.kind or kind in start:
            whole = _grown(start, {**offered, _ARGS: request.args}, reads)
            found += [conf] if (conf := _read(whole, request, rules)) else []
    return found


def _read(document: Document, request: Request, rules: Rules) -> NetConf | None:
    conf = {key: value for key, value in document.items() if key != _ARGS}
    try:
        return network.parse(replace(request, conf=conf, args=document.get(_ARGS, {})), rules)
    except VmlinkError:
        return None


def _grown(
    start: Document, offered: Mapping[str, Any], reads: Callable[[Document], bool], depth: int = 2
) -> Document:
    """Return `start` with all that is offered and can be read beside it, of sections in part."""
    kept, left = dict(start), dict(offered)
    while fitting := [key for key in left if reads({**kept, key: left[key]})]:
        # A key may need another one; of two that exclude each other the first stays.
        for key in fitting:
            if reads({**kept, key: left[key]}):
                kept[key] = left.pop(key)
    for key, section in left.items():
        if depth and isinstance(section, dict) and len(section) <= _MANY:
            part = _grown({}, section, _beside(kept, key, reads), depth - 1)
            kept |= {key: part} if part else {}
    return kept


def _beside(
    kept: Document, key: str, reads: Callable[[Document], bool]
) -> Callable[[Document], bool]:
    return lambda part: reads({**kept, key: part})
