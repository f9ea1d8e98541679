"""The results of a run as one JSON file, which schema.json describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema

from bench.results import Series

VERSION = 1
_SCHEMA = Path(__file__).parent / "schema.json"


class DocumentError(ValueError):
    """A file is not a document of this version; the message says which file and where."""


@dataclass
class Document:
    """The series, and in `about` all else: machine, versions, how the run went."""

    about: dict[str, Any]
    series: list[Series] = field(default_factory=list)

    def encode(self) -> dict[str, Any]:
        """The document as schema.json describes it; samples have six significant digits."""
        series = [
            {**vars(s), "at": dict(s.at), "samples": [float(f"{x:.6g}") for x in s.samples]}
            for s in self.series
        ]
        return {"schema": VERSION, **self.about, "series": series}

    def write(self, path: Path) -> None:
        """Write the document atomically, one series on a line. Raises OSError."""
        encoded = self.encode()
        series = ",\n".join(json.dumps(each, allow_nan=False) for each in encoded.pop("series"))
        about = json.dumps(encoded, indent=1).removesuffix("\n}")
        fresh = path.with_suffix(".new")
        fresh.write_text(f'{about},\n "series": [\n{series}\n ]\n}}\n')
        fresh.replace(path)


def read(path: Path) -> Document:
    """Read a document. Raises DocumentError."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as e:
        raise DocumentError(f"{path}: cannot be read: {e.strerror}") from e
    except ValueError as e:
        raise DocumentError(f"{path}: is not JSON: {e}") from e
    _check(path, content)
    return Document(
        {key: content[key] for key in content if key not in ("schema", "series")},
        [Series(**each) for each in content["series"]],
    )


def _check(path: Path, content: Any) -> None:
    version = content.get("schema") if isinstance(content, Mapping) else None
    if version is None:
        raise DocumentError(f"{path}: is not a result of ./run bench: it has no key 'schema'")
    if version != VERSION:
        raise DocumentError(
            f"{path}: schema: {version!r}, and this vmlink reads {VERSION}; "
            "use the vmlink that wrote the file, or measure again"
        )
    try:
        jsonschema.validate(content, json.loads(_SCHEMA.read_text()))
    except jsonschema.ValidationError as e:
        raise DocumentError(f"{path}: {e.json_path.removeprefix('$.')}: {e.message}") from e
