"""./run bench: measure, and show what was measured."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from bench import runner
from bench.progress import Progress
from bench.report import compare, document, formats, machine, page, tables
from bench.report.document import Document, DocumentError
from bench.results import Results
from bench.runner import Interrupted, Interrupts, Outcome
from bench.suites.task import Options, Task
from bench.testbed import snapshot

SUITES = {"attach": ("attach", "ovn"), "datapath": ("datapath",)}  # with modules in bench.suites
OUT = Path("bench-results")


def main(argv: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """Run the command line; returns the exit status.

    0; 1 when a task failed or left something behind; 2 for bad arguments; 128 and the signal.
    """
    commands = (*SUITES, "all", "report", "compare", "-h", "--help")
    arguments = list(argv) if argv and argv[0] in commands else ["all", *argv]
    options = _parser().parse_args(arguments)
    try:
        if options.command == "report":
            return report(options.file, options.out or options.file.parent)
        if options.command == "compare":
            print(compare.render(document.read(options.a), document.read(options.b)), end="")
            return 0
        suites = tuple(SUITES) if options.command == "all" else (options.command,)
        chosen = Options(options.quick, options.rounds, tuple(options.peer))
        return measure(suites, chosen, options.out)
    except (DocumentError, OSError) as e:
        print(f"./run bench: {e}", file=sys.stderr)
        return 2
    except Interrupted as e:
        return 128 + e.number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./run bench", description=(__doc__ or "").split(": ")[1])
    commands = parser.add_subparsers(dest="command", required=True)
    _add_suites(commands)
    again = commands.add_parser("report", help="tables and plots of a results.json")
    again.add_argument("file", type=Path, metavar="FILE")
    again.add_argument("--out", type=Path, metavar="DIR", help="default: where FILE is")
    both = commands.add_parser("compare", help="what changed between two results.json")
    both.add_argument("a", type=Path, metavar="A.json")
    both.add_argument("b", type=Path, metavar="B.json")
    return parser


def _add_suites(commands: Any) -> None:
    texts = {
        "attach": "ADD, CHECK and DEL beside other plugins",
        "datapath": "traffic of real guests",
        "all": "both; the default command",
    }
    for name, text in texts.items():
        suite = commands.add_parser(name, help=text)
        suite.add_argument("--quick", action="store_true", help="fewer rounds: some 5 minutes")
        suite.add_argument("--rounds", type=_rounds, default=0, help="samples of each contender")
        peer = "TYPE=PATH[,conf.json]"
        suite.add_argument(
            "--peer", action="append", default=[], metavar=peer, help="another CNI plugin"
        )
        suite.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"default: {OUT}")


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 1")
    return int(text)


def measure(names: Sequence[str], options: Options, out: Path) -> int:
    """Run suites and write their results and report into `out`; returns the exit status.

    Raises OSError.
    """
    out.mkdir(parents=True, exist_ok=True)
    started, clock = datetime.now(UTC), time.monotonic()
    snapshot.adopt_orphans()
    with Interrupts() as interrupts, ExitStack() as stack:
        about = machine.describe(guests="datapath" in names)
        before = snapshot.take()
        results = Results()
        makers = {name: partial(_make_tasks, name, options, results) for name in names}
        try:
            suites = runner.make_suites(makers, stack)
        except ValueError as e:
            print(f"./run bench: {e}", file=sys.stderr)
            return 2
        outcome = _run(suites, results, interrupts)
        with interrupts.held():
            left = snapshot.left_behind(before)
            about |= _about(names, options, outcome, left)
            about["started"] = started.strftime("%Y-%m-%dT%H:%M:%SZ")
            about["seconds"] = round(time.monotonic() - clock, 1)
            for series in results.series:
                series.note = machine.without_local_paths(series.note)
            Document(about, results.series).write(out / "results.json")
    report(out / "results.json", out)
    return 128 + outcome.signal if outcome.signal else 1 if outcome.failed or left else 0


def _make_tasks(name: str, options: Options, results: Results, stack: ExitStack) -> list[Task]:
    """The tasks of a suite. Raises ValueError for an option that it cannot use."""
    modules = [import_module(f"bench.suites.{module}") for module in SUITES[name]]
    return [task for module in modules for task in module.tasks(options, results, stack)]


def _run(suites: list[runner.Suite], results: Results, interrupts: Interrupts) -> Outcome:
    progress = Progress(sum(task.seconds for suite in suites for task in suite.tasks))
    try:
        return runner.run(suites, results, progress, interrupts)
    finally:
        progress.end()


def _about(
    names: Sequence[str], options: Options, outcome: Outcome, left: Sequence[str]
) -> Mapping[str, Any]:
    """What the document says about the run."""
    peers = [_without_directories(text) for text in options.peers]
    command = ["./run bench", "all" if tuple(names) == tuple(SUITES) else names[0]]
    command += ["--quick"] if options.quick else []
    command += [f"--rounds {options.rounds}"] if options.rounds else []
    command += [f"--peer {peer}" for peer in peers]
    chosen: dict[str, Any] = {"suites": list(names), "quick": options.quick}
    failed = [{**asdict(f), "error": machine.without_local_paths(f.error)} for f in outcome.failed]
    return {
        "command": " ".join(command),
        "options": chosen | {"rounds": options.rounds, "peers": peers},
        "interrupted": bool(outcome.signal),
        "failed": failed,
        "not_run": outcome.not_run,
        "left_behind": [machine.without_local_paths(each) for each in left],
    }


def _without_directories(text: str) -> str:
    """TYPE=PATH[,conf.json] with the files' names only."""
    kind, _, paths = text.partition("=")
    return f"{kind}=" + ",".join(Path(path).name for path in paths.split(","))


def report(file: Path, out: Path) -> int:
    """Print the tables of a document and write its page and plots into `out`; returns 0.

    Raises DocumentError, OSError.
    """
    content = document.read(file)
    out.mkdir(parents=True, exist_ok=True)
    print(tables.render(content), end="")
    written = page.write(content, out)
    print(f"took {formats.duration(content.about['seconds'])}; written:")
    for path in (file, *written):
        print(f"  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
