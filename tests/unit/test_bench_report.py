"""The tables, the comparison, the page and the charts, of made-up results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench import run
from bench.report import compare, document, page, stats, tables
from bench.report.charts import charts
from bench.report.document import Document, DocumentError
from bench.results import Series
from tests.unit import benchkit

EVIL = "<script>alert(1)</script> & co"


def series(
    contender: str,
    samples: Iterable[float],
    role: str = "vmlink",
    metric: str = "add",
    unit: str = "ms",
    **at: int | str,
) -> Series:
    return Series("attach", metric, unit, contender, role, at, list(samples))


def made(*found: Series, **about: Any) -> Document:
    return Document({**benchkit.ABOUT, **about}, list(found))


def row(told: str, name: str) -> list[str]:
    return next(line.split() for line in told.splitlines() if line.startswith(f"{name} "))


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    there = benchkit.document(not_run=["attach: x"])
    there.write(tmp_path / "a.json")
    document.read(tmp_path / "a.json").write(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    found = document.read(tmp_path / "a.json")
    assert found.about == there.about
    assert [s.contender for s in found.series] == [s.contender for s in there.series]
    assert found.series[0].samples == pytest.approx(there.series[0].samples, rel=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(schema=2), "schema: 2, and this vmlink reads 1"),
        (lambda d: d.pop("schema"), "is not a result of ./run bench"),
        (lambda d: d.pop("machine"), "'machine' is a required property"),
        (lambda d: d["machine"].update(cores="two"), "machine.cores: 'two' is not of type"),
        (lambda d: d["series"][0].update(role="friend"), r"series\[0\].role: 'friend'"),
        (lambda d: d["series"][0]["samples"].append("1"), r"series\[0\].samples\[2\]"),
        (lambda d: d.update(hostname="node1"), "hostname"),
    ],
)
def test_what_is_not_of_the_schema_is_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    found = deepcopy(made(series("x", [1, 2])).encode())
    change(found)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(found))
    with pytest.raises(DocumentError, match=f"bad.json: .*{told}"):
        document.read(path)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_what_is_no_document_is_refused(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text)
    assert run.main(["report", str(path)]) == 2
    assert f"./run bench: {path}: " in capsys.readouterr().err


def test_the_table_tells_quantiles_and_ratios() -> None:
    told = tables.render(
        made(series("tc-linux", range(1, 102)), series("bridge", [200] * 5, "baseline"))
    )
    assert row(told, "tc-linux")[1:] == ["51.0", "91.0", "100", "101", "101", "0.26"]
    assert row(told, "bridge")[1:] == ["200", "-", "-", "200", "5", "1.00"]


def test_where_more_is_better_the_tail_is_below() -> None:
    told = tables.render(made(series("tc-linux", range(1, 102), metric="rate", unit="1/s")))
    assert row(told, "tc-linux")[1:] == ["51.0", "11.0", "2.00", "1.00", "101"]


def test_the_baseline_is_of_the_same_conditions_and_the_nearest_name() -> None:
    bridge, vsctl = series("bridge", [10], "baseline"), series("ovs-vsctl", [40], "baseline")
    other = series("bridge", [1], "baseline", parallel=8)
    among = [other, bridge, vsctl]
    assert stats.baseline(series("tap-ovs", [4]), among) is vsctl
    assert stats.baseline(series("tap-linux", [4]), among) is bridge
    assert stats.baseline(series("tap-linux", [4], parallel=8), among) is other
    assert stats.baseline(series("tap-linux", [4], parallel=32), among) is None
    assert stats.ratio(series("x", [1]), series("zero", [0], "baseline")) is None


def test_what_could_not_be_measured_is_told_with_its_reason() -> None:
    absent = series("vhostuser-ovs", [])
    absent.note = "no huge pages"
    troubled = made(absent, not_run=["attach: late"], left_behind=["link stray0"])
    told = tables.render(troubled)
    assert "vhostuser-ovs (attach): no huge pages" in told
    assert "Not run: attach: late." in told
    assert "Left behind: link stray0" in told


@pytest.mark.parametrize(
    ("unit", "a", "b", "verdict"),
    [
        ("ms", [10, 11, 12, 13], [5, 6, 7, 8], "better"),
        ("ms", [5, 6, 7, 8], [10, 11, 12, 13], "worse"),
        ("Gbit/s", [5, 6, 7, 8], [10, 11, 12, 13], "better"),
        ("ms", [5, 6, 7, 8], [6, 7, 8, 9], "within the spread"),
        ("ms", [1, 1, 1], [9, 9, 9], "too few"),
    ],
)
def test_two_results_are_compared(unit: str, a: list[float], b: list[float], verdict: str) -> None:
    old, new = (made(series("tc-linux", s, unit=unit)) for s in (a, b))
    assert " ".join(row(compare.render(old, new), "tc-linux")[5:]) == verdict


def test_a_comparison_tells_when_the_machine_was_not_the_same() -> None:
    old = made(series("tc-linux", [1, 2, 3, 4]), series("bridge", [10] * 4, "baseline"))
    new = made(series("tc-linux", [2, 4, 6, 8]), series("bridge", [20] * 4, "baseline"))
    told = compare.render(old, new)
    assert row(told, "tc-linux")[3:5] == ["2.00", "1.00"]
    assert "1 of 1 series that are not of vmlink differ too" in told
    assert "differ too" not in compare.render(old, old)


def test_a_comparison_tells_what_else_differs_and_what_has_no_counterpart() -> None:
    old = made(series("a", [1]), series("b", [1]), kernel="6.1")
    new = made(series("b", [1]), series("c", [1]), series("d", [1]), kernel="6.18")
    told = compare.render(old, new)
    assert "kernel: A 6.1, B 6.18" in told
    assert "only in A: 1 series" in told
    assert "only in B: 2 series" in told
    assert "started" not in told
    assert "conditions" not in compare.render(old, old)


class Drawn(NamedTuple):
    """A report: its directory, the files that it wrote there, and its page."""

    out: Path
    written: list[Path]
    html: str


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """A report with one chart of each kind, of results that are hard to draw."""
    out = tmp_path_factory.mktemp("report")
    absent = series("vhostuser-ovs", [])
    absent.note = EVIL
    found = made(
        *(series("tc-linux", [2 + n / 50 for n in range(50)], parallel=p) for p in (1, 8)),
        series("a-name-that-is-much-longer-than-there-is-room-for", [900], "peer", parallel=1),
        series(EVIL, [0, 0.5], "peer", parallel=1),
        series("bridge", [7, 8, 9], "baseline", parallel=1),
        series("tc-linux", [2, 2.1], present=10),
        series("tc-linux", [2.2], present=1000),
        series("tc-linux", [0], metric="idle_cpu", unit="ms/s"),
        series("tc-linux", [0.5], metric="part:client", verb="ADD"),
        series("tc-linux", [-0.1], metric="part:queue", verb="ADD"),
        series("tc-linux", [3], metric="made_up", unit="furlong"),
        absent,
    )
    (out / "attach-stale.png").write_bytes(b"of a run before")
    (out / "mine.png").write_bytes(b"not ours")
    return Drawn(out, page.write(found, out), (out / "report.html").read_text())


def test_every_chart_is_a_png_and_what_was_there_before_is_gone(drawn: Drawn) -> None:
    out, written, _ = drawn
    pictures = {path.name for path in written if path.suffix == ".png"}
    assert pictures == {
        "attach-add.png",
        "attach-add-growth.png",
        "attach-idle-cpu.png",
        "attach-parts.png",
        "attach-made-up.png",
    }
    assert {path.name for path in out.iterdir()} == {*pictures, "mine.png", "report.html"}
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_the_page_needs_nothing_else_and_runs_nothing(drawn: Drawn) -> None:
    html = drawn.html
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)", html)
    assert set(re.findall(r"https?://[^\s\"<)]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "alert(1)&lt;/script&gt; &amp; co" in html
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_the_page_says_what_was_found_on_what(drawn: Drawn) -> None:
    html = drawn.html
    assert "2 cores of Made-up CPU &lt;x86&gt; &amp; more with 24 GiB of memory" in html
    assert "tc-linux 2.49 ms, bridge 8.00 ms (ratio 0.31)" in html
    assert "from 10 to 1000 attachments tc-linux 1.07 times" in html
    assert "The guests&#x27; CPU is emulated (TCG)" in html
    assert "made_up" in html
    assert "prefers-color-scheme: dark" in html
    assert "#1f66c1" not in html.partition("</style>")[2], (
        "the charts must take their colours from the page, for its dark theme"
    )


def test_a_run_that_measured_nothing_has_a_page(tmp_path: Path) -> None:
    assert page.write(made(interrupted=True), tmp_path) == [tmp_path / "report.html"]
    assert "The run was interrupted." in (tmp_path / "report.html").read_text()


def test_the_charts_of_a_whole_run() -> None:
    found = charts(benchkit.document())
    assert [c.name for c in found] == list(dict.fromkeys(c.name for c in found))
    kinds = {c.name: c.kind for c in found}
    assert kinds["attach-add"] == "samples"
    assert kinds["attach-add-growth"] == "growth"
    assert kinds["attach-parts"] == "parts"
    assert kinds["datapath-tcp-in"] == "bars"
    suites = [c.suite for c in found]
    assert suites == sorted(suites), "the charts of one suite must come before those of the other"
    only = charts(benchkit.document(suites=("datapath",)))
    assert {c.suite for c in only} == {"datapath"}
