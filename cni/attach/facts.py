"""Facts: what one step of an attachment learns and a later one needs, each of a type of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

F = TypeVar("F", bound="Fact")


@dataclass(frozen=True)
class Fact:
    """Base of all facts. A fact is defined beside the step that provides it.

    A stored fact consists of plain values and goes into the attachment's record; any other lives
    as long as the request.
    """

    kinds: ClassVar[dict[str, type[Fact]]] = {}
    stored: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        Fact.kinds[cls.__name__] = cls


class Facts:
    """The facts of one attachment, by type."""

    def __init__(self, *facts: Fact) -> None:
        self._facts: dict[type[Fact], Fact] = {type(fact): fact for fact in facts}

    def __getitem__(self, kind: type[F]) -> F:
        """Return the fact that a step before this one has provided. Raises KeyError for none."""
        return self._facts[kind]  # type: ignore[return-value]

    def get(self, kind: type[F]) -> F | None:
        """Return the fact, or None where no step has provided it."""
        return self._facts.get(kind)  # type: ignore[return-value]

    def put(self, *facts: Fact) -> None:
        """Add facts; a newer one takes the place of an older one of its type."""
        self._facts.update((type(fact), fact) for fact in facts)

    def copy(self) -> Facts:
        """Return a copy, for a request that may fail."""
        return Facts(*self._facts.values())

    def to_json(self) -> dict[str, Any]:
        """Return the stored facts by the names of their types."""
        return {kind.__name__: vars(f) for kind, f in self._facts.items() if kind.stored}

    @classmethod
    def from_json(cls, data: Mapping[str, Mapping[str, Any]]) -> Facts:
        """Read what `to_json` returned. Raises KeyError or TypeError for another version's."""
        return cls(*(Fact.kinds[name](**plain_fields(values)) for name, values in data.items()))


def plain_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a fact or step from JSON: with tuples for lists."""
    return {k: _plain(v) if type(v) is list else v for k, v in values.items()}


def _plain(values: list[Any]) -> tuple[Any, ...]:
    return tuple(_plain(each) if type(each) is list else each for each in values)
