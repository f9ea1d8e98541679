"""What a benchmark measured: series of samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ROLES = ("vmlink", "peer", "baseline", "ceiling", "floor")


@dataclass
class Series:
    """Samples of one metric of one contender, all taken under the same conditions.

    `suite` is attach or datapath; `metric` and `unit` are those of docs/results.md; `at` has the
    conditions, such as {"present": 300, "parallel": 8}. `role` says what the contender is to
    vmlink: what people use now (`peer`), what vmlink replaces (`baseline`), or a limit that nothing
    can pass (`ceiling`, `floor`). `note` is for the reader; without samples it says why there are
    none.
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
    """All series so far; filled while the tasks run, so that an interruption loses none."""

    series: list[Series] = field(default_factory=list)

    def add(self, series: Series, *samples: float) -> None:
        """Append samples to the series that equals this one in all but its samples."""
        for known in self.series:
            if _same(known, series):
                known.samples += samples
                return
        series.samples += samples
        self.series.append(series)


def _same(a: Series, b: Series) -> bool:
    return {**vars(a), "samples": ()} == {**vars(b), "samples": ()}
