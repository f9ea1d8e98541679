"""vmlinkd's own host-local against the real plugin, on the same store."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench.testbed.slowness import SLOWNESS
from cni.errors import VmlinkError
from cni.ipam.hostlocal import verbs
from cni.spec.types import AttachmentKey

REAL = Path("/usr/lib/cni/host-local")
pytestmark = pytest.mark.skipif(
    not REAL.exists(), reason=f"{REAL} is missing: apt-get install containernetworking-plugins"
)

RANGES: list[Any] = [
    [{"subnet": "10.1.0.0/28", "rangeStart": "10.1.0.3"}, {"subnet": "10.2.0.0/29"}],
    [{"subnet": "2001:db8:0:0:1::/122", "gateway": "2001:db8::1:0:0:5"}],
]

Answer = list[str] | str
Client = Callable[[str, dict[str, Any], str, str], Answer]


def real(verb: str, config: dict[str, Any], pod: str, args: str = "") -> Answer:
    """The addresses, or "error"."""
    done = subprocess.run(
        [REAL],
        input=json.dumps(config).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=20 * SLOWNESS,  # 1.1.1 loops forever on an address that begins with a zero byte
        env={
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": pod,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": "/none",
            "CNI_PATH": str(REAL.parent),
            "CNI_ARGS": args,
        },
    )
    if done.returncode:
        return "error"
    return _addresses(json.loads(done.stdout)["ips"]) if verb == "ADD" else []


def ours(verb: str, config: dict[str, Any], pod: str, args: str = "") -> Answer:
    pairs = dict(pair.split("=") for pair in args.split(";") if pair)
    request = verbs.IpamRequest(AttachmentKey(pod, "eth0"), config["name"], config, pairs)
    try:
        if verb == "ADD":
            ips = verbs.add(request).ips
            return [f"{ip.address} {ip.gateway}" for ip in ips]
        {"DEL": verbs.delete, "CHECK": verbs.check}[verb](request)
    except VmlinkError:
        return "error"
    return []


def _addresses(ips: list[dict[str, str]]) -> list[str]:
    return [f"{ip['address']} {ip['gateway']}" for ip in ips]


def conf(root: Path, ranges: Any = RANGES, **ipam: Any) -> dict[str, Any]:
    section = {"type": "host-local", "dataDir": str(root), "ranges": ranges, **ipam}
    return {"cniVersion": "1.0.0", "name": "net", "type": "x", "ipam": section}


def store(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (root / "net").iterdir()}


@pytest.mark.parametrize("seed", range(4))
def test_a_mixed_sequence_ends_as_the_real_one_alone_does(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    alone, mixed, single = (conf(tmp_path / n) for n in ("alone", "mixed", "single"))
    for step in range(70):
        verb = choose.choice(["ADD", "ADD", "DEL", "CHECK"])
        pod = f"pod{choose.randrange(24)}"
        args = f"IP=10.1.0.{choose.randrange(16)}" if choose.random() < 0.2 else ""
        client: Client = choose.choice([real, ours])
        expected = real(verb, alone, pod, args)
        assert client(verb, mixed, pod, args) == expected, (step, verb, pod, args, client.__name__)
        assert ours(verb, single, pod, args) == expected, (step, verb, pod, args)
        if args and expected == "error":
            # The real plugin also releases what the pod held before; ours does not.
            for config in (alone, mixed, single):
                real("DEL", config, pod)
    assert store(tmp_path / "alone") == store(tmp_path / "mixed") == store(tmp_path / "single")


def test_each_releases_what_the_other_gave(tmp_path: Path) -> None:
    config = conf(tmp_path)
    for give, take in ((real, ours), (ours, real)):
        assert give("ADD", config, "a", "") != "error"
        assert take("CHECK", config, "a", "") == []
        assert take("ADD", config, "a", "") == "error"
        assert take("DEL", config, "a", "") == []
        assert give("CHECK", config, "a", "") == "error"
        assert set(store(tmp_path)) == {"lock", "last_reserved_ip.0", "last_reserved_ip.1"}


def test_full_means_full_for_both(tmp_path: Path) -> None:
    config = conf(tmp_path, [[{"subnet": "10.1.0.0/29"}]])
    got = [(real, ours)[n % 2]("ADD", config, f"p{n}", "") for n in range(5)]
    assert len({ip for ips in got for ip in ips}) == 5
    assert real("ADD", config, "x", "") == ours("ADD", config, "x", "") == "error"


def test_old_format_is_released_by_both(tmp_path: Path) -> None:
    config = conf(tmp_path)
    for client in (real, ours):
        client("ADD", config, "other", "")
        (tmp_path / "net" / "10.1.0.9").write_text("old")
        assert client("CHECK", config, "old", "") == []
        assert client("ADD", config, "old", "") == "error"
        assert client("DEL", config, "old", "") == []
        assert not (tmp_path / "net" / "10.1.0.9").exists()


def test_concurrently_no_address_is_given_twice(tmp_path: Path) -> None:
    """Eight threads of each kind add; every third address is released by the other kind."""
    config = conf(tmp_path, [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]])

    def work(worker: int) -> dict[str, str]:
        client: Client = (real, ours)[worker % 2]
        other: Client = (ours, real)[worker % 2]
        held: dict[str, str] = {}
        for n in range(12):
            pod = f"w{worker}n{n}"
            answer = client("ADD", config, pod, "")
            assert answer != "error"
            if n % 3 == 2:
                assert other("DEL", config, pod, "") == []
            else:
                held |= {ip.split("/")[0]: pod for ip in answer}
        return held

    with ThreadPoolExecutor(16) as pool:
        each = list(pool.map(work, range(16)))
    owners = {ip: pod for held in each for ip, pod in held.items()}
    assert len(owners) == sum(map(len, each)) == 16 * 8 * 2
    on_disk = {k: v for k, v in store(tmp_path).items() if k[0] in "1f"}
    assert on_disk == {ip: f"{pod}\r\neth0".encode() for ip, pod in owners.items()}


@pytest.mark.parametrize(
    "ranges",
    [
        [[{"subnet": "10.1.0.0/24", "gateway": "192.168.1.1"}]],
        [[{"subnet": "10.1.0.0/24", "gateway": "10.1.0.9", "rangeStart": "10.1.0.0"}]],
        [[{"subnet": "10.1.0.0/24", "gateway": "", "rangeStart": "", "rangeEnd": None}]],
        [[{"subnet": "::ffff:10.1.0.0/120"}]],
        [[{"subnet": "10.1.0.0/24", "rangeStart": "::ffff:10.1.0.9"}]],
        [[{"subnet": "10.1.0.1/24"}]],
        [[{"subnet": "10.01.0.0/24"}]],
        [[{"subnet": "10.1.0.0/31"}]],
        [[{"subnet": "10.1.0.0/30", "rangeStart": "10.1.0.1", "rangeEnd": "10.1.0.1"}]],
        [[{"subnet": "2001:DB8:0:0:0:0:0:0/64"}]],
        [[{"subnet": "2001:0:0:2:0:0:0:0/112"}]],
        [[{"subnet": "2001:0:2:3:4:5:6:0/112"}]],
        [[{"subnet": "fe80::%eth0/64"}]],
        [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.128/25"}]],
        [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]],
        [[]],
        [],
    ],
    ids=json.dumps,
)
def test_hostile_ranges_are_taken_or_refused_alike(tmp_path: Path, ranges: Any) -> None:
    theirs = [real("ADD", conf(tmp_path / "a", ranges), f"p{n}", "") for n in range(2)]
    mine = [ours("ADD", conf(tmp_path / "b", ranges), f"p{n}", "") for n in range(2)]
    assert mine == theirs
    if mine[0] != "error":
        assert store(tmp_path / "a") == store(tmp_path / "b")


@pytest.mark.parametrize(
    "args",
    ["IP=10.1.0.9", "IP=10.1.0.9/16", "IP=", "IP=10.1.0.3", "IP=10.1.0.1", "IP=x", "IP=10.9.9.9"],
)
def test_requested_address_is_taken_or_refused_alike(tmp_path: Path, args: str) -> None:
    theirs = real("ADD", conf(tmp_path / "a"), "pod", args)
    assert ours("ADD", conf(tmp_path / "b"), "pod", args) == theirs
    if theirs == "error":
        assert ours("DEL", conf(tmp_path / "b"), "pod", "") == []


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\x00" * 9000),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to("lock"),
    ],
    ids=["empty", "bytes", "directory", "dangling", "link"],
)
def test_strange_entries_count_as_taken_for_both(
    tmp_path: Path, make: Callable[[Path], Any]
) -> None:
    config = conf(tmp_path)
    (tmp_path / "net").mkdir(parents=True)
    make(tmp_path / "net" / "10.1.0.3")
    first, second = ours("ADD", config, "a", ""), real("ADD", config, "b", "")
    assert (first[0], second[0]) == ("10.1.0.4/28 10.1.0.1", "10.1.0.5/28 10.1.0.1")
