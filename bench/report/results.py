"""What a benchmark measured, as series of samples, and the tasks that measure them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

ROLES = ("vmlink", "peer", "baseline", "ceiling", "floor")


@dataclass
class Series:
    """Samples of one metric of one contender, under the same conditions.

    `suite` is attach or datapath; `metric` and `unit` as in the documented schema; `at` tells the
    conditions, such as {"present": 300, "parallel": 8}. `role` says what the contender is to
    vmlink: what people use now (`peer`), what vmlink replaces (`baseline`), what cannot be
    passed (`ceiling`, `floor`). `note` is for the reader; a series without samples says there
    why it could not be measured.
    """

    suite: str
    metric: str
    unit: str
    contender: str
    role: str
    at: Mapping[str, int | str] = field(default_factory=dict)
    samples: list[float] = field(default_factory=list)
    note: str = ""


@dataclass
class Results:
    """Filled while the tasks run, so that what was measured outlives a Ctrl-C."""

    series: list[Series] = field(default_factory=list)

    def add(self, series: Series, *samples: float) -> None:
        """Append samples to the series that equals this one but for its samples."""
        for known in self.series:
            if _same(known, series):
                known.samples += samples
                return
        series.samples += samples
        self.series.append(series)


def _same(a: Series, b: Series) -> bool:
    return {**vars(a), "samples": ()} == {**vars(b), "samples": ()}


@dataclass(frozen=True)
class Task:
    """A piece of a benchmark: `name` is shown while it runs, `seconds` is what it may take."""

    name: str
    seconds: float
    run: Callable[[], None]


@dataclass(frozen=True)
class Options:
    """`peers` are further CNI plugins, as TYPE=PATH[,conf.json] names them."""

    quick: bool = False
    rounds: int = 0  # 0: what the suite holds right
    peers: tuple[str, ...] = ()
