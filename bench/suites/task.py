"""A task of a benchmark, and the options that a user gives to all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A piece of a benchmark: `name` is shown while it runs, `seconds` estimates how long."""

    name: str
    seconds: float
    run: Callable[[], None]


@dataclass(frozen=True)
class Options:
    """What the command line asks for; `peers` are further CNI plugins, TYPE=PATH[,conf.json]."""

    quick: bool = False
    rounds: int = 0  # 0: each suite's own choice
    peers: tuple[str, ...] = ()
