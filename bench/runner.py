"""Run the tasks of the suites. A failure or an interruption costs nothing that was measured."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType

from bench.progress import Progress
from bench.report.results import Results, Task

Maker = Callable[[ExitStack], list[Task]]
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """SIGINT or SIGTERM: `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """The first SIGINT or SIGTERM raises Interrupted, and those that follow are ignored.

    One that comes while it is `held` is raised afterwards.
    """

    def __init__(self) -> None:
        self._held = False
        self._number = 0

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._come) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        self._held = True
        yield
        self._held = False
        self._raise()

    def _come(self, number: int, _frame: FrameType | None) -> None:
        self._number = number
        if not self._held:
            self._raise()

    def _raise(self) -> None:
        number, self._number = self._number, 0
        if number:
            # Ignored rather than handled: programs that help to give back inherit that.
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_IGN)
            raise Interrupted(number)


@dataclass(frozen=True)
class Failure:
    suite: str
    task: str
    error: str


@dataclass
class Outcome:
    """`not_run` are tasks, as SUITE: NAME; `signal` is what interrupted the run, or 0."""

    failed: list[Failure] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    signal: int = 0


@dataclass(frozen=True)
class Suite:
    """Its tasks, and how to give back what they make."""

    name: str
    tasks: list[Task]
    give_back: Callable[[], None]


def suites(makers: Mapping[str, Maker], stack: ExitStack) -> list[Suite]:
    """Each gets a stack of its own, which `stack` closes at the latest."""
    found = []
    for name, make in makers.items():
        own = stack.enter_context(ExitStack())
        found.append(Suite(name, make(own), own.close))
    return found


def run(
    found: list[Suite], results: Results, progress: Progress, interrupts: Interrupts
) -> Outcome:
    """Tasks of a suite rely on those before them, so one that fails ends its suite, and the next
    suite has its turn. What was made is given back before that.
    """
    outcome = Outcome()
    outcome.not_run += [f"{suite.name}: {task.name}" for suite in found for task in suite.tasks]
    try:
        for suite in found:
            _run_suite(suite, results, progress, outcome)
            with interrupts.held():
                _give_back(suite, progress, outcome)
    except Interrupted as e:
        outcome.signal = e.number
        progress.say(f"{e}: giving back; what was measured is kept")
        for suite in found:
            _give_back(suite, progress, outcome)
    return outcome


def _run_suite(
    suite: Suite,
    results: Results,
    progress: Progress,
    outcome: Outcome,
) -> None:
    for task in suite.tasks:
        before = [len(series.samples) for series in results.series]
        name = f"{suite.name}: {task.name}"
        progress.start(name, task.seconds)
        try:
            task.run()
        except Exception as e:
            failure = _failed(suite, task.name, e, progress)
            outcome.failed.append(failure)
            _note(results, before, failure)
            outcome.not_run.remove(name)
            return
        progress.done()
        outcome.not_run.remove(name)


def _give_back(suite: Suite, progress: Progress, outcome: Outcome) -> None:
    try:
        suite.give_back()
    except Exception as e:
        outcome.failed.append(_failed(suite, "giving back", e, progress))


def _failed(suite: Suite, task: str, error: Exception, progress: Progress) -> Failure:
    progress.say("".join(traceback.format_exception(error)).rstrip())
    first = str(error).partition("\n")[0]
    told = first if isinstance(error, AssertionError) else f"{type(error).__name__}: {first}"
    progress.say(f"{suite.name}: {task} failed")
    return Failure(suite.name, task, told or type(error).__name__)


def _note(results: Results, before: list[int], failure: Failure) -> None:
    """What the task that failed had begun is less than it should be."""
    told = f"incomplete: {failure.task} failed: {failure.error}"
    for number, series in enumerate(results.series):
        if number >= len(before) or len(series.samples) > before[number]:
            series.note = f"{series.note}; {told}" if series.note else told
