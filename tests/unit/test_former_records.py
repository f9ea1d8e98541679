"""Records and prepared ports of format 1, written by a former vmlinkd, are read as today's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cni.attach.facts import Fact, Facts
from cni.attach.plan import Step
from cni.attach.records import FORMAT, Record, Store
from cni.config import network
from cni.config.network import Chosen
from cni.daemon.pool_store import PoolFiles
from cni.modes import MODES, rules
from cni.spec.types import AttachmentKey, Request

DATA = Path(__file__).parents[1] / "data" / "records_format_1"
PATHS = sorted(DATA.glob("*.json"))
FINISHED = [path for path in PATHS if not path.stem.endswith("-intent")]


def load(path: Path, directory: Path) -> Record:
    first = json.loads(path.read_text().partition("\n")[0])
    key = AttachmentKey(first["container_id"], first["ifname"])
    shutil.copy(path, directory / f"{key.digest}.json")
    record = Store(directory).load(key)
    assert record is not None
    return record


def planned(record: Record) -> set[Step]:
    """The steps that an ADD of today would take for the same request."""
    conf = json.loads(record.stdin)
    args = dict(pair.split("=") for pair in record.env.get("CNI_ARGS", "").split(";") if pair)
    request = Request("DEL", conf["cniVersion"], conf, b"", record.env, args, record.key)
    parsed = network.parse(request, rules(), Chosen(record.mode, "the record"))
    return set(MODES[parsed.mode].plan(record.key, parsed).steps)


def test_every_mode_is_there() -> None:
    assert {json.loads(p.read_text().partition("\n")[0])["mode"] for p in PATHS} == set(MODES)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_record_is_read(path: Path, tmp_path: Path) -> None:
    record = load(path, tmp_path)
    assert record.format < FORMAT
    assert record.begun == 0  # not told: NICs go by their names then
    assert record.intent == path.stem.endswith("-intent")
    steps = record.plan()
    assert steps is not None
    assert record.key.prepared == ("" if not record.port else record.port["id"])


@pytest.mark.parametrize("path", FINISHED, ids=lambda path: path.stem)
def test_all_facts_are_there_that_its_steps_provide(path: Path, tmp_path: Path) -> None:
    record = load(path, tmp_path)
    steps = record.plan()
    assert steps is not None
    provided = {kind for step in steps.steps for kind in step.provides if kind.stored}
    facts = record.known_facts()
    assert {kind for kind in Fact.kinds.values() if facts.get(kind)} >= provided
    assert Facts.from_json(json.loads(json.dumps(facts.to_json()))).to_json() == facts.to_json()


@pytest.mark.parametrize("path", FINISHED, ids=lambda path: path.stem)
def test_its_steps_are_those_of_today(path: Path, tmp_path: Path) -> None:
    record = load(path, tmp_path)
    steps, today = record.plan(), planned(record)
    assert steps is not None
    if "kubeovn" in record.stdin:  # the pod's annotations decide the fields
        assert {type(step) for step in steps.steps} <= {type(step) for step in today}
    else:
        assert set(steps.steps) <= today


@pytest.mark.parametrize("pool", sorted(DATA.glob("pool*/*@*")), ids=lambda p: f"{p.parent.name}")
def test_prepared_ports_are_read(pool: Path, tmp_path: Path) -> None:
    directory = tmp_path / pool.name
    shutil.copytree(pool, directory)
    expected = {path.stem for path in pool.glob("*.json")} - {"pool"}
    numbers, ports = PoolFiles(directory).load()
    assert numbers["network"] == "net"
    assert {port.id for port in ports} == expected
    for port in ports:
        assert port.format < FORMAT
        made = {kind for step in port.plan.steps for kind in step.provides if kind.stored}
        facts = port.known_facts()
        assert not port.ready or all(facts.get(kind) for kind in made)
