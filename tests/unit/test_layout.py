"""The layout of the code: short files, short functions, and no mode by name where none belongs."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE, FUNCTION, MEDIAN = 350, 45, 8  # lines
SOURCES = [path for top in ("cni", "bench", "tests") for path in sorted((ROOT / top).rglob("*.py"))]


def functions(path: Path) -> dict[str, int]:
    """The length of each function in lines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds))
    return {
        f"{node.name}:{node.lineno}": (node.end_lineno or 0) - node.lineno + 1 for node in found
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= FILE
    assert {name: size for name, size in functions(path).items() if size > FUNCTION} == {}


@pytest.mark.parametrize("top", ["cni", "bench"])
def test_most_functions_are_very_short(top: str) -> None:
    sizes = [size for path in (ROOT / top).rglob("*.py") for size in functions(path).values()]
    assert statistics.median(sizes) < MEDIAN


@pytest.mark.parametrize("package", ["daemon", "attach"])
def test_no_mode_uplink_or_step_is_known_by_name(package: str) -> None:
    names = r"OvsUplink|isinstance\(.*Uplink|isinstance\(.*Step|[\"'](tc|veth|tap|macvtap)[\"']"
    found = [
        f"{path.name}:{n}"
        for path in (ROOT / "cni" / package).rglob("*.py")
        for n, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(names, line)
    ]
    assert found == []
