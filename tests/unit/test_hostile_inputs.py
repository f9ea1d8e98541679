"""No input is an internal error: each is taken, or refused by a coded error that names its key."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni.errors import BadConfig, UnsupportedField, VmlinkError
from tests.unit.hostilekit import INPUTS, VALUES, Path, changed, places

EXAMPLES, BATCH = 40, 40  # for each of the inputs


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "vmlink")


@pytest.mark.parametrize("kind", INPUTS)
def test_what_is_sent_is_valid_before_it_is_changed(kind: str) -> None:
    read, document = INPUTS[kind]
    read(document)


@pytest.mark.parametrize("kind", INPUTS)
def test_every_key_with_every_value(kind: str) -> None:
    read, document = INPUTS[kind]
    wrong = []
    for path in places(document):
        for value in VALUES:
            try:
                read(changed(document, (path, value)))
            except VmlinkError as e:
                if not names(e, path):
                    wrong.append((path, value, e.code, e.msg))
            except Exception as e:
                wrong.append((path, value, 100, f"internal error: {e!r}"))
    assert not wrong, (len(wrong), wrong[:10])


def names(error: VmlinkError, path: Path) -> bool:
    """Whether a message about a configuration tells where to look."""
    if not isinstance(error, BadConfig | UnsupportedField):
        return bool(error.msg)
    return any(key in error.msg for key in path if isinstance(key, str))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner)),
    max_leaves=4,
)
CHANGE = st.tuples(st.integers(0, 10**6), st.one_of(st.sampled_from(VALUES), JSON))
CHANGES = st.lists(CHANGE, min_size=1, max_size=3)


@pytest.mark.parametrize("kind", INPUTS)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(batch=st.lists(CHANGES, min_size=BATCH, max_size=BATCH))
def test_some_keys_with_any_values(kind: str, batch: list[list[tuple[int, Any]]]) -> None:
    read, document = INPUTS[kind]
    paths = list(places(document))
    for changes in batch:
        found = [(paths[number % len(paths)], value) for number, value in changes]
        with suppress(VmlinkError):
            read(changed(document, *found))


def test_how_many_there_are() -> None:
    every = sum(len(list(places(document))) * len(VALUES) for _, document in INPUTS.values())
    assert every + EXAMPLES * BATCH * len(INPUTS) >= 50_000
