"""Run the tasks of the suites; a failure or an interruption keeps what was measured."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType

from bench.progress import Progress
from bench.results import Results
from bench.suites.task import Task

TaskMaker = Callable[[ExitStack], list[Task]]
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """While it is entered, the first SIGINT or SIGTERM raises Interrupted; later ones are ignored.

    A signal that arrives inside `held` is raised at its end.
    """

    def __init__(self) -> None:
        self._held = False
        self._number = 0

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let this block finish before a signal is raised. Raises Interrupted."""
        self._held = True
        yield
        self._held = False
        self._raise()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._number = number
        if not self._held:
            self._raise()

    def _raise(self) -> None:
        number, self._number = self._number, 0
        if number:
            # Ignored, not handled: programs that the clean-up starts inherit it.
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_IGN)
            raise Interrupted(number)


@dataclass(frozen=True)
class Failure:
    """A task that failed, and why."""

    suite: str
    task: str
    error: str


@dataclass
class Outcome:
    """How a run went.

    `not_run` are tasks, as SUITE: NAME; `signal` is what interrupted the run, or 0.
    """

    failed: list[Failure] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    signal: int = 0


@dataclass(frozen=True)
class Suite:
    """A suite's tasks; `close` removes what they made."""

    name: str
    tasks: list[Task]
    close: Callable[[], None]


def make_suites(makers: Mapping[str, TaskMaker], stack: ExitStack) -> list[Suite]:
    """Make the tasks of each suite, with a stack of its own, which `stack` closes at the latest."""
    suites = []
    for name, make in makers.items():
        own = stack.enter_context(ExitStack())
        suites.append(Suite(name, make(own), own.close))
    return suites


def run(
    suites: list[Suite], results: Results, progress: Progress, interrupts: Interrupts
) -> Outcome:
    """Run all tasks and clean up after each suite.

    A task relies on those before it, so a failure ends its suite; the next one still runs.
    """
    outcome = Outcome()
    outcome.not_run += [f"{suite.name}: {task.name}" for suite in suites for task in suite.tasks]
    try:
        for suite in suites:
            _run_suite(suite, results, progress, outcome)
            with interrupts.held():
                _clean_up(suite, progress, outcome)
    except Interrupted as e:
        outcome.signal = e.number
        progress.say(f"{e}: cleaning up; what was measured is kept")
        for suite in suites:
            _clean_up(suite, progress, outcome)
    return outcome


def _run_suite(suite: Suite, results: Results, progress: Progress, outcome: Outcome) -> None:
    for task in suite.tasks:
        before = [len(series.samples) for series in results.series]
        name = f"{suite.name}: {task.name}"
        progress.start(name, task.seconds)
        try:
            task.run()
        except Exception as e:
            failure = _failure(suite, task.name, e, progress)
            outcome.failed.append(failure)
            _mark_incomplete(results, before, failure)
            outcome.not_run.remove(name)
            return
        progress.done()
        outcome.not_run.remove(name)


def _clean_up(suite: Suite, progress: Progress, outcome: Outcome) -> None:
    try:
        suite.close()
    except Exception as e:
        outcome.failed.append(_failure(suite, "clean-up", e, progress))


def _failure(suite: Suite, task: str, error: Exception, progress: Progress) -> Failure:
    progress.say("".join(traceback.format_exception(error)).rstrip())
    first = str(error).partition("\n")[0]
    text = first if isinstance(error, AssertionError) else f"{type(error).__name__}: {first}"
    progress.say(f"{suite.name}: {task} failed")
    return Failure(suite.name, task, text or type(error).__name__)


def _mark_incomplete(results: Results, before: list[int], failure: Failure) -> None:
    """Add a note to the series that the failed task has begun."""
    note = f"incomplete: {failure.task} failed: {failure.error}"
    for number, series in enumerate(results.series):
        if number >= len(before) or len(series.samples) > before[number]:
            series.note = f"{series.note}; {note}" if series.note else note
