"""The results of a run as one JSON file; bench/schema.json says what is in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema

from bench.report.results import Series

VERSION = 1
_SCHEMA = Path(__file__).parent / "schema.json"


class DocumentError(ValueError):
    """A file that is not a document of this version; says which file and where."""


@dataclass
class Document:
    """`about` has everything but the series: the machine, the versions, how the run went."""

    about: dict[str, Any]
    series: list[Series] = field(default_factory=list)

    def encode(self) -> dict[str, Any]:
        """As bench/schema.json says. Samples have six digits: there are many."""
        series = [
            {**vars(s), "at": dict(s.at), "samples": [float(f"{x:.6g}") for x in s.samples]}
            for s in self.series
        ]
        return {"schema": VERSION, **self.about, "series": series}

    def write(self, path: Path) -> None:
        """Whole or not at all. Raises OSError."""
        told = self.encode()
        series = ",\n".join(json.dumps(each, allow_nan=False) for each in told.pop("series"))
        about = json.dumps(told, indent=1).removesuffix("\n}")
        whole = path.with_suffix(".new")
        whole.write_text(f'{about},\n "series": [\n{series}\n ]\n}}\n')
        os.replace(whole, path)


def read(path: Path) -> Document:
    """Raises DocumentError."""
    try:
        told = json.loads(path.read_bytes())
    except OSError as e:
        raise DocumentError(f"{path}: cannot be read: {e.strerror}") from e
    except ValueError as e:
        raise DocumentError(f"{path}: is not JSON: {e}") from e
    _check(path, told)
    return Document(
        {key: told[key] for key in told if key not in ("schema", "series")},
        [Series(**each) for each in told["series"]],
    )


def _check(path: Path, told: Any) -> None:
    version = told.get("schema") if isinstance(told, Mapping) else None
    if version is None:
        raise DocumentError(f"{path}: is not a result of ./run bench: it has no key 'schema'")
    if version != VERSION:
        raise DocumentError(
            f"{path}: schema: {version!r}, and this vmlink reads {VERSION}; "
            "use the vmlink that wrote the file, or measure again"
        )
    try:
        jsonschema.validate(told, json.loads(_SCHEMA.read_text()))
    except jsonschema.ValidationError as e:
        raise DocumentError(f"{path}: {e.json_path.removeprefix('$.')}: {e.message}") from e
