"""./run bench with suites made up here: what fails or is interrupted costs no result."""

import io
import json
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from types import ModuleType

import pytest

from bench import run
from bench.progress import Progress
from bench.report import document, machine
from bench.results import Series
from bench.suites.task import Task
from bench.testbed import guest, snapshot

ADD = Series("attach", "add", "ms", "tc-linux", "vmlink")
TCP = Series("datapath", "tcp_in", "Gbit/s", "tc-linux", "vmlink")


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(guest, "accelerator", lambda: "tcg")
    monkeypatch.setattr(guest, "accelerator_reason", lambda: "made up")
    monkeypatch.setattr(run.page, "write", lambda *_: [])
    # The machine is shared with what else is tested meanwhile.
    monkeypatch.setattr(snapshot, "left_behind", lambda _: [])


@pytest.fixture
def suites(monkeypatch):
    """Give the suites these tasks, as functions of the results and the stack."""

    def give(**tasks):
        for suite, names in run.SUITES.items():
            for name in names:
                module = ModuleType(f"bench.suites.{name}")
                module.tasks = tasks_of(tasks.get(suite, {}) if name == suite else {})
                monkeypatch.setitem(sys.modules, f"bench.suites.{name}", module)

    return give


def tasks_of(named):
    def tasks(options, results, stack):
        def bound(function):
            return lambda: function(results, stack)

        return [Task(name, 1, bound(function)) for name, function in named.items()]

    return tasks


def adds(series, *samples):
    return lambda results, _: results.add(replace(series, samples=[]), *samples)


def fails(results, _):
    results.add(replace(ADD, contender="bridge", samples=[]), 5.0)
    raise RuntimeError("no\nmore")


def test_two_tasks_may_have_one_name(suites, monkeypatch):
    suites(attach={"one": adds(ADD, 2.0)})
    twice = sys.modules["bench.suites.attach"].tasks
    monkeypatch.setattr(sys.modules["bench.suites.attach"], "tasks", lambda *a: twice(*a) * 2)
    assert run.main(["attach"]) == 0
    assert written().series[0].samples == [2.0, 2.0]
    assert written().about["not_run"] == []


def interrupted(number):
    return lambda *_: signal.raise_signal(number)


def written(name="bench-results"):
    return document.read(run.Path(name, "results.json"))


def test_both_suites_are_measured_and_written(suites, capsys):
    suites(attach={"one": adds(ADD, 2.0, 3.0)}, datapath={"two": adds(TCP, 1.5)})
    assert run.main(["--quick", "--rounds", "7", "--out", "here"]) == 0
    found = written("here")
    assert [series.samples for series in found.series] == [[2.0, 3.0], [1.5]]
    assert found.about["command"] == "./run bench all --quick --rounds 7"
    assert found.about["accelerator"] == {"name": "tcg", "reason": "made up"}
    assert not found.about["interrupted"]
    assert "here/results.json" in capsys.readouterr().out


def test_an_attach_run_boots_no_guest_to_tell_the_accelerator(suites, monkeypatch):
    monkeypatch.setattr(guest, "accelerator", lambda: pytest.fail("a guest was probed"))
    suites(attach={"one": adds(ADD, 2.0)}, datapath={"two": fails})
    assert run.main(["attach"]) == 0
    assert written().about["accelerator"]["name"] == ""


def test_a_failure_ends_its_suite_and_not_the_other(suites, capsys):
    given_back = []
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
    assert tcp.samples == [1.0], "the first suite gives back before the second begins"
    assert "attach: bad failed: RuntimeError: no" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_was_measured_and_gives_back(suites, number, capsys):
    given_back = []

    def begin(results, stack):
        stack.callback(given_back.append, "made")
        stack.callback(signal.raise_signal, number)  # one more, meanwhile
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


def test_an_interruption_waits_until_a_suite_has_given_back(suites):
    given_back = []

    def begin(_, stack):
        stack.callback(given_back.append, "first")
        stack.callback(lambda: (signal.raise_signal(signal.SIGINT), given_back.append("last")))

    suites(attach={"begin": begin}, datapath={"never": fails})
    assert run.main(["all"]) == 130
    assert given_back == ["last", "first"]
    assert written().about["not_run"] == ["datapath: never"]


def test_what_cannot_be_given_back_is_told(suites):
    suites(attach={"begin": lambda _, stack: stack.callback(lambda: 1 / 0)})
    assert run.main(["attach"]) == 1
    [failure] = written().about["failed"]
    assert (failure["task"], failure["error"][:17]) == ("clean-up", "ZeroDivisionError")


def test_what_is_left_behind_is_told(suites, monkeypatch, capsys):
    suites(attach={"one": adds(ADD, 2.0)})
    monkeypatch.setattr(snapshot, "left_behind", lambda _: ["link stray0"])
    assert run.main(["attach"]) == 1
    assert "Left behind: link stray0" in capsys.readouterr().out


def test_an_option_that_a_suite_cannot_use_ends_it_before_anything_runs(monkeypatch, capsys):
    module = ModuleType("bench.suites.attach")

    def tasks(options, results, stack: ExitStack):
        raise ValueError(f"--peer {options.peers[0]}: no such program")

    module.tasks = tasks
    monkeypatch.setitem(sys.modules, "bench.suites.attach", module)
    assert run.main(["attach", "--peer", "x=/nowhere"]) == 2
    assert "--peer x=/nowhere: no such program" in capsys.readouterr().err
    assert not run.Path("bench-results/results.json").exists()


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
def test_bad_arguments_are_named(arguments, told, capsys):
    with pytest.raises(SystemExit) as error:
        run.main(arguments)
    assert error.value.code == 2
    assert told in capsys.readouterr().err


def test_the_document_tells_no_path_of_this_machine(suites, tmp_path):
    here = run.Path(machine.__file__).parents[2]

    def bad(results, _):
        adds(replace(ADD, note=f"see {here}/x"), 1.0)(results, _)
        raise RuntimeError(f"{run.Path.home()}/y is missing")

    suites(attach={"bad": bad})
    assert run.main(["attach", "--peer", f"x={tmp_path}/x,{tmp_path}/c.json"]) == 1
    told = run.Path("bench-results/results.json").read_text()
    assert json.loads(told)["options"]["peers"] == ["x=x,c.json"]
    for private in (tmp_path, here.parent, run.Path.home()):
        assert f"{private}/" not in told


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_time_left_follows_what_was_true_so_far(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress(100, io.StringIO())
    progress.start("a", 20)
    assert "0%  1 min 40 s left  a" in progress.line()
    now[0] = 40  # twice as long as it said
    progress.done()
    progress.start("b", 80)
    assert "20%  2 min 40 s left  b" in progress.line()
    now[0] = 120
    assert "60%  1 min 20 s left  b" in progress.line()
    now[0] = 4000  # longer than it said is not done
    assert "96%" in progress.line()


def test_a_terminal_gets_one_line_and_a_file_plain_ones():
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
