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
from bench.report import compare, document, machine, page, tables, words
from bench.report.document import Document, DocumentError
from bench.report.results import Options, Results
from bench.runner import Interrupted, Interrupts, Outcome
from bench.testbed import snapshot

SUITES = {"attach": ("attach", "ovn"), "datapath": ("datapath",)}  # with their modules
OUT = Path("bench-results")


def main(argv: Sequence[str] = tuple(sys.argv[1:])) -> int:
    commands = (*SUITES, "all", "report", "compare", "-h", "--help")
    arguments = list(argv) if argv and argv[0] in commands else ["all", *argv]
    options = _parser().parse_args(arguments)
    try:
        if options.command == "report":
            return report(options.file, options.out or options.file.parent)
        if options.command == "compare":
            print(compare.render(document.read(options.a), document.read(options.b)), end="")
            return 0
        chosen = tuple(SUITES) if options.command == "all" else (options.command,)
        given = Options(options.quick, options.rounds, tuple(options.peer))
        return measure(chosen, given, options.out)
    except (DocumentError, OSError) as e:
        print(f"./run bench: {e}", file=sys.stderr)
        return 2
    except Interrupted as e:
        return 128 + e.number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./run bench", description=(__doc__ or "").split(": ")[1])
    commands = parser.add_subparsers(dest="command", required=True)
    told = {
        "attach": "ADD, CHECK and DEL beside other plugins",
        "datapath": "traffic of real guests",
        "all": "both, which is what happens without a command",
    }
    for name, text in told.items():
        suite = commands.add_parser(name, help=text)
        suite.add_argument("--quick", action="store_true", help="fewer rounds: some 5 minutes")
        suite.add_argument("--rounds", type=_rounds, default=0, help="samples of each contender")
        peer = "TYPE=PATH[,conf.json]"
        suite.add_argument(
            "--peer", action="append", default=[], metavar=peer, help="another plugin"
        )
        suite.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"default: {OUT}")
    again = commands.add_parser("report", help="tables and plots of a results.json")
    again.add_argument("file", type=Path, metavar="FILE")
    again.add_argument("--out", type=Path, metavar="DIR", help="default: where FILE is")
    both = commands.add_parser("compare", help="what changed between two results.json")
    both.add_argument("a", type=Path, metavar="A.json")
    both.add_argument("b", type=Path, metavar="B.json")
    return parser


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 1")
    return int(text)


def measure(chosen: Sequence[str], options: Options, out: Path) -> int:
    """Run the suites and write what they measured. The exit status: 0, 1 when something failed
    or was left behind, 2 for options that a suite cannot use, 128 and the signal.
    """
    out.mkdir(parents=True, exist_ok=True)
    started, clock = datetime.now(UTC), time.monotonic()
    snapshot.adopt_orphans()
    with Interrupts() as interrupts, ExitStack() as stack:
        about = machine.describe(guests="datapath" in chosen)
        before = snapshot.take()
        results = Results()
        makers = {name: partial(_make, name, options, results) for name in chosen}
        try:
            suites = runner.suites(makers, stack)
        except ValueError as e:
            print(f"./run bench: {e}", file=sys.stderr)
            return 2
        progress = Progress(sum(task.seconds for suite in suites for task in suite.tasks))
        try:
            outcome = runner.run(suites, results, progress, interrupts)
        finally:
            progress.end()
        with interrupts.held():
            left = snapshot.left_behind(before)
            about |= _how(chosen, options, started, time.monotonic() - clock, outcome, left)
            for series in results.series:
                series.note = machine.impersonal(series.note)
            Document(about, results.series).write(out / "results.json")
    report(out / "results.json", out)
    return 128 + outcome.signal if outcome.signal else 1 if outcome.failed or left else 0


def _make(name: str, options: Options, results: Results, stack: ExitStack) -> Any:
    """Raises ValueError for an option that the suite cannot use."""
    modules = [import_module(f"bench.suites.{module}") for module in SUITES[name]]
    return [task for module in modules for task in module.tasks(options, results, stack)]


def _how(
    chosen: Sequence[str],
    options: Options,
    started: datetime,
    seconds: float,
    outcome: Outcome,
    left: Sequence[str],
) -> Mapping[str, Any]:
    """What the document tells about the run itself."""
    peers = [_peer(text) for text in options.peers]
    command = ["./run bench", "all" if tuple(chosen) == tuple(SUITES) else chosen[0]]
    command += ["--quick"] if options.quick else []
    command += [f"--rounds {options.rounds}"] if options.rounds else []
    command += [f"--peer {peer}" for peer in peers]
    told: dict[str, Any] = {"suites": list(chosen), "quick": options.quick}
    failed = [{**asdict(f), "error": machine.impersonal(f.error)} for f in outcome.failed]
    return {
        "started": started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": round(seconds, 1),
        "command": " ".join(command),
        "options": told | {"rounds": options.rounds, "peers": peers},
        "interrupted": bool(outcome.signal),
        "failed": failed,
        "not_run": outcome.not_run,
        "left_behind": [machine.impersonal(each) for each in left],
    }


def _peer(text: str) -> str:
    """TYPE=PATH[,conf.json] without the directories."""
    kind, _, paths = text.partition("=")
    return f"{kind}=" + ",".join(Path(path).name for path in paths.split(","))


def report(file: Path, out: Path) -> int:
    """Print the tables of a document and draw it into `out`. Raises DocumentError, OSError."""
    found = document.read(file)
    out.mkdir(parents=True, exist_ok=True)
    print(tables.render(found), end="")
    written = page.write(found, out)
    print(f"took {words.duration(found.about['seconds'])}; written:")
    for path in (file, *written):
        print(f"  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
