"""The guard's program, frame by frame, against what the corpus says and what the model says."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator

import pytest

from cni.config.guard import GuardConf
from cni.errors import NotReady
from cni.kernel import redirect
from cni.kernel.guard import maps, program
from cni.kernel.guard.program import Guard
from cni.kernel.guard.values import REASONS, Values
from cni.modes.steps.guard import require_guard
from tests.guard import fuzz
from tests.guard.corpus import CASES, CORPUS, LAYER_2, STRICT
from tests.guard.frames import OTHER, V4_OTHER, V6_OTHER, e4, e6
from tests.guard.model import Model
from tests.guard.testrun import Judge, runs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
IDS = [f"{who}: {name}" for who, _, name, _, _ in CASES]
COUNT = 20_000


@pytest.fixture(scope="module")
def judges() -> Iterator[dict[Values, Judge]]:
    guards = {values: program.load() for values in {values for _, values, *_ in CASES}}
    for values, guard in guards.items():
        guard.put(values)
    yield {values: Judge(guard) for values, guard in guards.items()}
    for guard in guards.values():
        guard.close()


@pytest.fixture
def guard() -> Iterator[Guard]:
    loaded = program.load()
    yield loaded
    loaded.close()


def test_the_corpus_has_each_reason_and_what_passes() -> None:
    reasons = collections.Counter(reason for reason, _ in CORPUS.values())
    assert {*reasons} == {"", *REASONS}
    assert len(CORPUS) >= 120


@pytest.mark.parametrize(("who", "values", "name", "reason", "frame"), CASES, ids=IDS)
def test_a_frame(
    judges: dict[Values, Judge], who: str, values: Values, name: str, reason: str, frame: bytes
) -> None:
    assert Model(values).judge(frame) == reason, (who, name)
    if not runs(frame):
        pytest.skip("BPF_PROG_TEST_RUN refuses a frame this short; test_wire.py sends it")
    assert judges[values].judge(frame) == reason, (who, name)


def test_random_frames_are_judged_as_by_the_model() -> None:
    seen: collections.Counter[str] = collections.Counter()
    assert list(fuzz.compare(seed=14, count=COUNT, seen=seen)) == []
    assert min(seen[reason] for reason in ("", *REASONS)) > COUNT / 500, seen


def test_nothing_passes_before_there_are_values(guard: Guard) -> None:
    judge = Judge(guard)
    assert {judge.judge(f) for _, f in CORPUS.values() if runs(f)} == {"mac"}
    assert judge.judge(bytes(60)) == "mac"  # as the MAC of a conf that is not written


def test_new_values_take_the_place_of_the_former(guard: Guard) -> None:
    judge = Judge(guard)
    guard.put(STRICT)
    assert guard.has(STRICT)
    moved = Values(OTHER, (V4_OTHER,))
    guard.put(moved)
    assert guard.has(moved)
    assert not guard.has(STRICT)
    assert judge.judge(e4()) == "mac"
    guard.put(Values(STRICT.mac, (V4_OTHER,)))
    assert judge.judge(e4()) == "ip"
    assert judge.judge(e4(source=V4_OTHER)) == ""
    assert judge.judge(e6(source=V6_OTHER)) == "ip"


def test_shut_lets_nothing_pass(guard: Guard) -> None:
    guard.put(LAYER_2)
    assert Judge(guard).judge(e4()) == ""
    guard.shut()
    assert Judge(guard).judge(e4()) == "mac"
    assert maps.keys(guard.maps["allowed"], 21) == []


def test_drops_are_counted_by_reason(guard: Guard) -> None:
    guard.put(STRICT)
    judge = Judge(guard)
    expected = dict.fromkeys(REASONS, 0)
    for reason, frame in CORPUS.values():
        if runs(frame):
            judge.judge(frame)
            if reason:
                expected[reason] += 1
    assert guard.drops() == expected


def test_a_trunk_of_all_vlans(guard: Guard) -> None:
    trunk = Values(STRICT.mac, vlans=tuple(range(1, 4095)))
    guard.put(trunk)
    assert guard.has(trunk)


def test_the_maps_of_a_loaded_program_are_found_again(guard: Guard) -> None:
    guard.put(STRICT)
    with program.opened(guard.id) as again:
        assert again.has(STRICT)
        assert {*again.maps} == {"conf", "allowed", "drops"}


def test_the_shelf_hands_each_copy_out_once() -> None:
    shelf = program.Shelf()
    taken = [shelf.take() for _ in range(3)]
    assert len({guard.fd for guard in taken}) == 3
    for guard in taken:
        guard.close()
    shelf.clear()


def test_a_node_that_cannot_have_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    require_guard(GuardConf())
    with monkeypatch.context() as patched:
        patched.setattr(redirect, "supported", lambda: {"cls_bpf": "no cls_bpf here"})
        with pytest.raises(NotReady, match=r"^guard: no cls_bpf here; load .* guard: false$"):
            require_guard(GuardConf())
        patched.setattr(redirect, "choose", lambda engine: "tcx")
        require_guard(GuardConf(), "auto")
        require_guard(None)
    monkeypatch.setattr(program, "OBJECT", "/nowhere/guard.bpf.o")
    for cached in (program.compiled, program.require):
        cached.cache_clear()
    with pytest.raises(NotReady, match=r"^guard: .*install vmlink again; .* guard: false$"):
        require_guard(GuardConf())
    require_guard(None)
