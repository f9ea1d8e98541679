"""The report as one self-contained HTML file, and its plots as PNG files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from bench.report import charts, draw, formats, labels, palette, stats, tables
from bench.report.charts import Chart
from bench.report.document import Document

_TEMPLATE = Path(__file__).parent / "page.html"
_FINDINGS = "add del burst_add burst_del tcp_in tcp_out pps_in pps_out rtt".split()
_SUITES = {
    "attach": (
        "Attaching",
        "Each call is a whole process, as a container runtime makes it. The contenders take turns.",
    ),
    "datapath": ("Traffic", "Through real guests. The contenders take turns."),
}
_CAPTIONS = {
    "samples": "Dots are single samples, the thick bar is the middle half of them, the stroke the "
    "median, the small tick p99 if there are enough samples. At the right: the median and its "
    "ratio to the baseline, which is dashed.",
    "bars": "Medians, from zero; dots are single samples, and the line goes from the smallest to "
    "the largest. At the right: the median and its ratio to the baseline, which is dashed.",
    "growth": "Medians, with the middle half of the samples as a band.",
    "parts": "Medians of the parts of a call; the whole bar is the call. Parts without room for "
    "their name are in the table.",
}


def write(document: Document, out: Path) -> list[Path]:
    """Write page and plots into a directory; returns their paths. Raises OSError.

    Plots of a former run are removed.
    """
    all_charts = charts.charts(document)
    for stale in (*out.glob("attach-*.png"), *out.glob("datapath-*.png")):
        stale.unlink()
    pictures = [out / f"{chart.name}.png" for chart in all_charts]
    drawn = [draw.draw(chart, png) for chart, png in zip(all_charts, pictures, strict=True)]
    html = render(document, list(zip(all_charts, drawn, strict=True)))
    (out / "report.html").write_text(html)
    return [out / "report.html", *pictures]


def render(document: Document, drawn: Sequence[tuple[Chart, str]]) -> str:
    """The page as HTML, with charts and their SVG."""
    template = Template(_TEMPLATE.read_text())
    return template.substitute(
        light=_colours(palette.LIGHT),
        dark=_colours(palette.DARK),
        measured=escape(_measured(document.about)),
        problems=_list(tables.problems(document), "problems"),
        findings=_list(_findings([chart for chart, _ in drawn]), "findings"),
        caveats=_list(_caveats(document), ""),
        contenders=_contenders(document),
        sections="\n".join(_sections(document, drawn)),
        missing=_missing(document),
        run=_run(document.about),
    )


def _colours(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def _list(lines: Iterable[str], kind: str) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def _measured(about: dict[str, Any]) -> str:
    machine = about["machine"]
    virtual = f", a virtual machine ({machine['virtualised_by']})"
    cores = f"{machine['cores']} core{'s' if machine['cores'] != 1 else ''}"
    return (
        f"Measured on {about['started'][:10]} in {formats.duration(about['seconds'])} on "
        f"{cores} of {machine['cpu']} with {machine['memory_mb'] / 1024:.0f} GiB of memory"
        f"{virtual if machine['virtualised_by'] else ''}, Linux {about['kernel']}, vmlink "
        f"{about['versions']['vmlink']}, by {about['command']}."
    )


def _findings(all_charts: Sequence[Chart]) -> list[str]:
    """What the charts show, the comparisons of most interest first."""
    keys = [f"{suite}-{m.replace('_', '-')}" for suite in _SUITES for m in _FINDINGS]
    main = [chart for key in keys for chart in all_charts if chart.name == key]
    growth = [chart for chart in all_charts if chart.kind == "growth"]
    return [
        " ".join(filter(None, (f"{chart.title}.", charts.summary_of_ratios(chart))))
        for chart in (*main, *growth)
        if chart.title != chart.metric
    ]


def _caveats(document: Document) -> list[str]:
    about = document.about
    caveats = [
        "Ratios within this run say more than figures, which are of one machine on one day.",
        "A difference smaller than the spread that the plots show is noise.",
    ]
    measured = [series for series in document.series if series.samples]
    few = sum(len(series.samples) < stats.FOR_SPREAD for series in measured)
    if few:
        caveats.append(
            f"{few} of {len(measured)} series have less than {stats.FOR_SPREAD} samples, too few "
            "to show a spread."
        )
    if about["machine"]["virtualised_by"]:
        caveats.append("The machine is itself virtual, and its neighbours add noise.")
    if about["accelerator"]["name"] == "tcg":
        reason = about["accelerator"]["reason"]
        caveats.append(
            f"The guests' CPU is emulated (TCG): {reason}. That limits all contenders with a "
            "guest, so differences between them show less than on hardware."
        )
    if about["versions"]["dirty"]:
        caveats.append("vmlink had changes that are not committed.")
    return caveats


def _contenders(document: Document) -> str:
    known: dict[tuple[str, str], str] = {}
    for series in document.series:
        known.setdefault((series.contender, series.role), series.note if series.samples else "")
    rows = [
        f'<tr><td class="name" style="color: var(--{palette.role(role)})">{escape(name)}</td>'
        f"<td>{escape(labels.ROLES.get(role, role))}</td>"
        f"<td>{escape(labels.contender(name, role) or note)}</td></tr>"
        for (name, role), note in known.items()
    ]
    return f'<div class="wide"><table class="text">{"".join(rows)}</table></div>'


def _sections(document: Document, drawn: Sequence[tuple[Chart, str]]) -> Iterable[str]:
    for suite in dict.fromkeys(chart.suite for chart, _ in drawn):
        title, text = _SUITES.get(suite, (suite, ""))
        yield f'<section id="{escape(suite)}"><h2>{escape(title)}</h2><p>{escape(text)}</p>'
        for chart, svg in drawn:
            if chart.suite == suite:
                yield _figure(document, chart, svg)
        yield "</section>"


def _figure(document: Document, chart: Chart, svg: str) -> str:
    figures = "".join(_table(block) for block in tables.blocks(chart.series, document.series))
    width = float(svg.partition('viewBox="0 0 ')[2].partition(" ")[0])  # points
    return (
        f'<figure><h3>{escape(chart.title)}</h3><div class="wide">'
        f'<div class="plot" style="min-width: {width:.0f}px; max-width: {width * 1.33:.0f}px">'
        f"{svg}</div></div>"
        f"<figcaption>{escape(_CAPTIONS[chart.kind])}</figcaption>"
        f"<details><summary>The figures</summary>{figures}</details></figure>"
    )


def _table(block: tables.Block) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in block.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in block.rows
    )
    notes = _list(block.notes, "notes")
    return (
        f'<div class="wide"><table><caption>{escape(block.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{notes}"
    )


def _missing(document: Document) -> str:
    lines = tables.missing(document)
    return f"<section><h2>Not measured</h2>{_list(lines, '')}</section>" if lines else ""


def _run(about: dict[str, Any]) -> str:
    versions = {**about["versions"], "kernel": about["kernel"]}
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(value) or '-')}</td></tr>"
        for name, value in versions.items()
    )
    return f'<div class="wide"><table class="text">{rows}</table></div>'
