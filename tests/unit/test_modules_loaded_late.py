"""What a kernel cannot do is asked again: its module may have been loaded since."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cni.errors import NotReady
from cni.kernel import redirect
from cni.modes.steps import token_bucket


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    caches = (redirect._missing, redirect._filters_missing, token_bucket._missing)
    for known in caches:
        known.cache_clear()
    yield
    for known in caches:
        known.cache_clear()


def test_a_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{"cls_bpf": "no", "mirred": "no"}, {"cls_bpf": "", "mirred": ""}])
    monkeypatch.setattr(redirect, "in_scratch_namespace", lambda _: next(answers))
    with pytest.raises(NotReady, match="cls_bpf: no"):
        redirect.choose("cls_bpf")
    assert [redirect.choose("cls_bpf") for _ in range(2)] == ["cls_bpf"] * 2


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["no tbf", ""])
    monkeypatch.setattr(token_bucket, "in_scratch_namespace", lambda _: next(answers))
    with pytest.raises(NotReady, match="no tbf"):
        token_bucket.require()
    for _ in range(2):
        token_bucket.require()
