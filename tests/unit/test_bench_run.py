"""./run bench with made-up suites: a failure or an interrupt loses no result."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Protocol

import pytest

from bench import run
from bench.progress import Progress
from bench.report import document, machine, page
from bench.report.document import Document
from bench.results import Results, Series
from bench.suites.task import Options, Task
from bench.testbed import guest, snapshot

ADD = Series("attach", "add", "ms", "tc-linux", "vmlink")
TCP = Series("datapath", "tcp_in", "Gbit/s", "tc-linux", "vmlink")

Measure = Callable[[Results, ExitStack], object]  # what a task of a made-up suite does
Tasks = Callable[[Options, Results, ExitStack], list[Task]]


class Suite(ModuleType):
    """Takes the place of a module of bench.suites."""

    def __init__(self, name: str, tasks: Tasks) -> None:
        super().__init__(f"bench.suites.{name}")
        self.tasks = tasks


class Give(Protocol):
    """Replaces the tasks of the suites, by suite and name; a suite that is not named has none."""

    def __call__(self, **tasks: Mapping[str, Measure]) -> None: ...


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(guest, "accelerator", lambda: "tcg")
    monkeypatch.setattr(guest, "accelerator_reason", lambda: "made up")
    monkeypatch.setattr(page, "write", lambda *_: [])
    # Other tests run at the same time, and what they leave is not ours to report.
    monkeypatch.setattr(snapshot, "left_behind", lambda _: [])


@pytest.fixture
def suites(monkeypatch: pytest.MonkeyPatch) -> Give:
    def give(**tasks: Mapping[str, Measure]) -> None:
        for suite, names in run.SUITES.items():
            for name in names:
                module = Suite(name, tasks_of(tasks.get(suite, {}) if name == suite else {}))
                monkeypatch.setitem(sys.modules, module.__name__, module)

    return give


def tasks_of(named: Mapping[str, Measure]) -> Tasks:
    def tasks(_: Options, results: Results, stack: ExitStack) -> list[Task]:
        def run_it(measure: Measure) -> None:
            measure(results, stack)

        return [Task(name, 1, partial(run_it, measure)) for name, measure in named.items()]

    return tasks


def adds(series: Series, *samples: float) -> Measure:
    return lambda results, _: results.add(replace(series, samples=[]), *samples)


def fails(results: Results, _: ExitStack) -> None:
    results.add(replace(ADD, contender="bridge", samples=[]), 5.0)
    raise RuntimeError("no\nmore")


def test_two_tasks_may_have_one_name(suites: Give, monkeypatch: pytest.MonkeyPatch) -> None:
    suites(attach={"one": adds(ADD, 2.0)})
    attach = sys.modules["bench.suites.attach"]
    assert isinstance(attach, Suite)
    once = attach.tasks
    monkeypatch.setattr(attach, "tasks", lambda *a: once(*a) * 2)
    assert run.main(["attach"]) == 0
    assert written().series[0].samples == [2.0, 2.0]
    assert written().about["not_run"] == []


def interrupted(number: signal.Signals) -> Measure:
    return lambda *_: signal.raise_signal(number)


def written(name: str = "bench-results") -> Document:
    return document.read(Path(name, "results.json"))


def test_both_suites_are_measured_and_written(
    suites: Give, capsys: pytest.CaptureFixture[str]
) -> None:
    suites(attach={"one": adds(ADD, 2.0, 3.0)}, datapath={"two": adds(TCP, 1.5)})
    assert run.main(["--quick", "--rounds", "7", "--out", "here"]) == 0
    found = written("here")
    assert [series.samples for series in found.series] == [[2.0, 3.0], [1.5]]
    assert found.about["command"] == "./run bench all --quick --rounds 7"
    assert found.about["accelerator"] == {"name": "tcg", "reason": "made up"}
    assert not found.about["interrupted"]
    assert "here/results.json" in capsys.readouterr().out


def test_an_attach_run_boots_no_guest_to_tell_the_accelerator(
    suites: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "accelerator", lambda: pytest.fail("a guest was probed"))
    suites(attach={"one": adds(ADD, 2.0)}, datapath={"two": fails})
    assert run.main(["attach"]) == 0
    assert written().about["accelerator"]["name"] == ""


def test_a_failure_ends_its_suite_and_not_the_other(
    suites: Give, capsys: pytest.CaptureFixture[str]
) -> None:
    given_back: list[str] = []
    suites(
        attach={
            "begun": lambda _, stack: stack.callback(given_back.append, "attach"),
            "early": adds(ADD, 2.0),
            "bad": fails,
            "late": adds(ADD, 9.0),
        },
        datapath={"two": lambda results, _: adds(TCP, len(given_back))(results, _)},
    )
    assert run.main(["all"]) == 1
    found = written()
    assert found.about["failed"] == [
        {"suite": "attach", "task": "bad", "error": "RuntimeError: no"}
    ]
    assert found.about["not_run"] == ["attach: late"]
    early, half, tcp = found.series
    assert (early.samples, early.note) == ([2.0], "")
    assert half.note == "incomplete: bad failed: RuntimeError: no"
    assert tcp.samples == [1.0], "the first suite must give back before the second begins"
    assert "attach: bad failed: RuntimeError: no" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_was_measured_and_gives_back(
    suites: Give, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    given_back: list[str] = []

    def begin(results: Results, stack: ExitStack) -> None:
        stack.callback(given_back.append, "made")
        stack.callback(signal.raise_signal, number)  # a second one, while the first is handled
        results.add(replace(ADD, samples=[]), 2.0)

    suites(attach={"begin": begin, "long": interrupted(number), "late": fails})
    before = signal.getsignal(number)
    assert run.main(["attach"]) == 128 + number
    assert signal.getsignal(number) is before
    found = written()
    assert (given_back, found.series[0].samples) == (["made"], [2.0])
    assert found.about["interrupted"]
    assert found.about["not_run"] == ["attach: long", "attach: late"]
    told = capsys.readouterr()
    assert "what was measured is kept" in told.err
    assert "The run was interrupted." in told.out


def test_an_interruption_waits_until_a_suite_has_given_back(suites: Give) -> None:
    given_back: list[str] = []

    def last() -> None:
        signal.raise_signal(signal.SIGINT)
        given_back.append("last")

    def begin(_: Results, stack: ExitStack) -> None:
        stack.callback(given_back.append, "first")
        stack.callback(last)

    suites(attach={"begin": begin}, datapath={"never": fails})
    assert run.main(["all"]) == 130
    assert given_back == ["last", "first"]
    assert written().about["not_run"] == ["datapath: never"]


def test_what_cannot_be_given_back_is_told(suites: Give) -> None:
    suites(attach={"begin": lambda _, stack: stack.callback(lambda: 1 / 0)})
    assert run.main(["attach"]) == 1
    [failure] = written().about["failed"]
    assert (failure["task"], failure["error"][:17]) == ("clean-up", "ZeroDivisionError")


def test_what_is_left_behind_is_told(
    suites: Give, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suites(attach={"one": adds(ADD, 2.0)})
    monkeypatch.setattr(snapshot, "left_behind", lambda _: ["link stray0"])
    assert run.main(["attach"]) == 1
    assert "Left behind: link stray0" in capsys.readouterr().out


def test_an_option_that_a_suite_cannot_use_ends_it_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tasks(options: Options, results: Results, stack: ExitStack) -> list[Task]:
        raise ValueError(f"--peer {options.peers[0]}: no such program")

    monkeypatch.setitem(sys.modules, "bench.suites.attach", Suite("attach", tasks))
    assert run.main(["attach", "--peer", "x=/nowhere"]) == 2
    assert "--peer x=/nowhere: no such program" in capsys.readouterr().err
    assert not Path("bench-results/results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["attach", "--rounds", "0"], "--rounds: '0': expected a number from 1"),
        (["attach", "--rounds", "many"], "--rounds: 'many': expected a number from 1"),
        (["report"], "FILE"),
        (["compare", "a.json"], "B.json"),
        (["report", "a.json", "--quick"], "--quick"),
        (["everything"], "everything"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        run.main(arguments)
    assert error.value.code == 2
    assert told in capsys.readouterr().err


def test_the_document_tells_no_path_of_this_machine(suites: Give, tmp_path: Path) -> None:
    here = Path(machine.__file__).parents[2]

    def bad(results: Results, _: ExitStack) -> None:
        adds(replace(ADD, note=f"see {here}/x"), 1.0)(results, _)
        raise RuntimeError(f"{Path.home()}/y is missing")

    suites(attach={"bad": bad})
    assert run.main(["attach", "--peer", f"x={tmp_path}/x,{tmp_path}/c.json"]) == 1
    told = Path("bench-results/results.json").read_text()
    assert json.loads(told)["options"]["peers"] == ["x=x,c.json"]
    for private in (tmp_path, here.parent, Path.home()):
        assert f"{private}/" not in told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_time_left_follows_what_was_true_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress(100, io.StringIO())
    progress.start("a", 20)
    assert "0%  1 min 40 s left  a" in progress.line()
    now[0] = 40  # "a" took twice as long as estimated
    progress.done()
    progress.start("b", 80)
    assert "20%  2 min 40 s left  b" in progress.line()
    now[0] = 120
    assert "60%  1 min 20 s left  b" in progress.line()
    now[0] = 4000  # "b" took longer than estimated, and still runs
    assert "96%" in progress.line()


def test_a_terminal_gets_one_line_and_a_file_plain_ones() -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        progress = Progress(2, stream)
        progress.start("attach: one", 1)
        progress.done()
        progress.say("stays")
        progress.end()
    assert "\n" not in terminal.getvalue().replace("stays\n", "")
    assert "attach: one" in terminal.getvalue()
    assert file.getvalue() == "0%  2 s left  attach: one\nstays\n"
