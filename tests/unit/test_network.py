"""The network configuration: each key, its default, and the error when its value is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from cni.config import network as config
from cni.config.network import Chosen, KubeOvn, NetConf
from cni.config.nic import TapConf
from cni.config.uplinks import Chained, LinuxUplink
from cni.errors import BadConfig, BadEnvironment, UnsupportedField, VmlinkError
from cni.modes import rules
from cni.spec.types import AttachmentKey, Interface, Request, Result
from tests.unit.purekit import IPAM, PREV, parse

MACS = [f"02:00:00:00:00:0{n}" for n in range(5)]


def bridged(**conf: Any) -> dict[str, Any]:
    return {"linux": {"bridge": "br0"}, **conf}


def chained(**conf: Any) -> dict[str, Any]:
    return {"prevResult": PREV, **conf}


def kube(**conf: Any) -> dict[str, Any]:
    return {"ovs": {"bridge": "br-int"}, "kubeovn": {"provider": "ovn"}, **conf}


POD = {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "db-0"}


def of_pod(container: str, ifname: str = "eth0", **change: str) -> str:
    conf = {"name": "net", "type": "vmlink", **bridged(mac="pod")}
    key = AttachmentKey(container, ifname)
    call = Request("ADD", "1.1.0", conf, b"", {}, {**POD, **change}, key, "/n")
    return config.parse(call, rules()).mac


def test_a_pod_keeps_its_mac_under_a_new_container_id() -> None:
    kept = of_pod("c1")
    assert kept == of_pod("c2")
    assert kept.startswith("02:")
    others = {of_pod("c1", "eth1"), of_pod("c1", K8S_POD_NAME="db-1")}
    assert len({kept, *others}) == 3


def test_a_mac_of_the_pod_needs_the_pods_name() -> None:
    with pytest.raises(BadConfig, match="mac: pod needs K8S_POD_NAMESPACE and K8S_POD_NAME"):
        parse(bridged(mac="pod"))
    assert parse(bridged(mac="pod"), verb="DEL").mac == ""
    assert parse(bridged(mac="pod", runtimeConfig={"mac": MACS[1]})).mac == MACS[1]


@pytest.mark.parametrize(
    ("keys", "args", "fixed"),
    [
        ({}, {}, False),
        ({"ipam": IPAM}, {}, False),
        ({"ipam": IPAM, "runtimeConfig": {"ips": ["10.0.0.9"]}}, {}, True),
        ({"ipam": IPAM, "args": {"cni": {"ips": ["10.0.0.9"]}}}, {}, True),
        ({"ipam": IPAM}, {"IP": "10.0.0.9"}, True),
        ({"ipam": {"type": "static"}}, {}, True),
    ],
)
def test_who_has_a_fixed_address(keys: dict[str, Any], args: dict[str, str], fixed: bool) -> None:
    assert parse(bridged(**keys), args).fixed_address == fixed


def test_defaults() -> None:
    assert parse(bridged()) == NetConf("net", "tc", LinuxUplink("br0"))
    prev = Result((Interface("eth0", sandbox="/n"),))
    assert parse(chained()) == NetConf("net", "tc", Chained(), prev=prev)


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        (bridged(mode="veth"), {"mode": "veth"}),
        *((bridged(redirect=r), {"redirect": r}) for r in config.REDIRECTS),
        *((bridged(mtu=n), {"mtu": n}) for n in (68, 1400, 65521)),
        *((bridged(queues=n), {"queues": n}) for n in (1, 2, 256)),
        (bridged(mac="02-00-00-00-00-AA"), {"mac": "02:00:00:00:00:aa"}),
        (bridged(resultStyle="tc-redirect-tap"), {"result_style": "tc-redirect-tap"}),
        (bridged(dns={"search": ["x"]}), {"dns": {"search": ["x"]}}),
        (bridged(ipam=IPAM), {"ipam": "host-local"}),
        (bridged(ipam={}), {"ipam": ""}),
        (bridged(tap={"owner": 0, "group": 5}), {"tap": TapConf(0, 5)}),
        (bridged(tap={"name": "tap0"}), {"tap": TapConf(name="tap0")}),
        (chained(queues=4), {"queues": 4}),
        ({"linux": {"bridge": "br0", "vlan": 4094}}, {"uplink": LinuxUplink("br0", vlan=4094)}),
        (
            {"linux": {"bridge": "br0", "gateway": True}, "ipam": IPAM},
            {"uplink": LinuxUplink("br0", gateway=True)},
        ),
        (bridged(mtu=None, tap=None, ipam=None, dns=None, mac=None, queues=None), {}),
        (bridged(deviceID="0000:03:02.1", pciBusID=None), {}),
        (bridged(capabilities={"mac": True}, runtimeConfig={"other": 1}, args={"x": 1}), {}),
    ],
)
def test_keys(conf: dict[str, Any], expected: dict[str, Any]) -> None:
    found = parse(conf)
    assert {name: getattr(found, name) for name in expected} == expected
    if not expected:
        assert found == parse(bridged())


@pytest.mark.parametrize("given", range(4), ids=["runtimeConfig", "args.cni", "CNI_ARGS", "config"])
def test_where_the_mac_comes_from(given: int) -> None:
    """Each place from number `given` on has a MAC of its own: the first of them wins."""
    places: list[dict[str, Any]] = [
        {"mac": mac} if n >= given else {} for n, mac in enumerate(MACS)
    ]
    conf = bridged(runtimeConfig=places[0], args={"cni": places[1]}, **places[3])
    args = {"MAC": MACS[2]} if given <= 2 else {}
    assert parse(conf, args).mac == MACS[given]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"TC_REDIRECT_TAP_UID": "7"}, TapConf(7, 2, "tap0")),
        ({"TC_REDIRECT_TAP_GID": "0"}, TapConf(1, 0, "tap0")),
        ({"TC_REDIRECT_TAP_NAME": "fc0"}, TapConf(1, 2, "fc0")),
    ],
)
def test_args_for_the_tap_win(args: dict[str, str], expected: TapConf) -> None:
    assert parse(bridged(tap={"owner": 1, "group": 2, "name": "tap0"}), args).tap == expected


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({"TC_REDIRECT_TAP_UID": "root"}, BadEnvironment),
        ({"TC_REDIRECT_TAP_GID": "-1"}, BadEnvironment),
        ({"TC_REDIRECT_TAP_UID": "4294967295"}, BadConfig),
        ({"TC_REDIRECT_TAP_NAME": "a/b"}, BadConfig),
        ({"MAC": "ff:ff:ff:ff:ff:ff"}, BadConfig),
    ],
)
def test_bad_args(args: dict[str, str], error: type[VmlinkError]) -> None:
    with pytest.raises(error):
        parse(bridged(), args)


@pytest.mark.parametrize(
    ("conf", "key"),
    [
        (bridged(bridge="br0"), "bridge"),
        (bridged(Mode="tc"), "Mode"),
        ({"linux": {"bridge": "br0", "mtu": 5}}, "linux.mtu"),
        (bridged(tap={"uid": 1}), "tap.uid"),
        (kube(kubeovn={"provider": "ovn", "subnet": "x"}), "kubeovn.subnet"),
    ],
)
def test_unknown_keys_are_named_with_their_value(conf: dict[str, Any], key: str) -> None:
    with pytest.raises(UnsupportedField, match=rf"^{key}: unknown key \(value .*\); known are"):
        parse(conf)


@pytest.mark.parametrize("key", ["deviceID", "pciBusID"])
def test_a_device_of_multus_is_a_text(key: str) -> None:
    with pytest.raises(BadConfig, match=rf"^{key}: expected a text, found 5"):
        parse(bridged(**{key: 5}))


def test_a_network_of_kube_ovn() -> None:
    assert parse(kube()).kubeovn == KubeOvn("ovn")
    routes = [{"dst": "10.0.0.0/8", "gw": "10.1.0.1"}]
    section = {"provider": "net1.default.ovn", "routes": routes}
    assert parse(kube(kubeovn=section)).kubeovn == KubeOvn("net1.default.ovn", tuple(routes))


CHOSEN = Chosen("veth", "annotation x")


def test_a_mode_that_is_chosen_passes_over_what_is_for_others() -> None:
    conf = bridged(mode="tap", tap={"owner": 7}, placeholder=True)
    assert parse(conf, chosen=CHOSEN) == parse(bridged(mode="veth"))
    same = Chosen("tap", "annotation x")
    assert parse(conf, chosen=same) == parse(conf)


@pytest.mark.parametrize(
    ("mode", "uplink"),
    [
        ("tc", {"linux": {"bridge": "br0"}}),
        ("tap", {"linux": {"bridge": "br0"}}),
        ("macvtap", {"master": "eth1"}),
        ("vhostuser", {"ovs": {"bridge": "br0"}}),
    ],
)
@pytest.mark.parametrize("verb", ["ADD", "STATUS"])
def test_dhcp_is_the_guests_to_ask(mode: str, uplink: dict[str, Any], verb: str) -> None:
    with pytest.raises(BadConfig, match=f"ipam.type: dhcp .* in mode {mode} .* drop ipam"):
        parse({**uplink, "mode": mode, "ipam": {"type": "dhcp"}}, verb=verb)


@pytest.mark.parametrize("keys", [{"mode": "veth"}, {"runtime": "kata"}])
def test_a_plain_container_asks_by_the_plugin_dhcp(keys: dict[str, Any]) -> None:
    assert parse({"linux": {"bridge": "br0"}, "ipam": {"type": "dhcp"}, **keys}).ipam == "dhcp"


def test_a_mode_that_is_chosen_is_named_by_who_chose() -> None:
    with pytest.raises(BadConfig, match=r"^annotation x: veth does not go with the uplink chained"):
        parse(chained(), chosen=CHOSEN)


NO_REDIRECTS: list[Any] = ["tc", None, {}]
NO_PLUGINS: list[Any] = ["a/b", "..", ".", 5, None, []]
NO_MACS = ["01:00:00:00:00:01", "00:00:00:00:00:00", "02:00:00:00:00", "0200.0000.0001", "x", 5]
NO_LINKS = ["", ".", "a/b", "x" * 16, "br%d", "\ud800", 5, None]


@pytest.mark.parametrize(
    ("conf", "key"),
    [
        *((bridged(mode=v), "mode") for v in ("bridge", "", None, ["tc"])),
        *((bridged(redirect=v), "redirect") for v in NO_REDIRECTS),
        *((bridged(resultStyle=v), "resultStyle") for v in ("cni", True)),
        *((bridged(mtu=v), "mtu") for v in (67, 65522, -1, 0, "1500", True, 1500.0)),
        *((bridged(queues=v), "queues") for v in (0, 257, "2", True)),
        *((bridged(tap={"owner": v}), "tap.owner") for v in (-1, 2**32 - 1, "root", False)),
        *((bridged(tap={"group": v}), "tap.group") for v in (-1, 2**32 - 1)),
        *((bridged(tap={"name": v}), "tap.name") for v in NO_LINKS),
        *((bridged(**{k: 5}), k) for k in ("tap", "ipam", "dns", "args", "runtimeConfig")),
        (bridged(args={"cni": []}), "args.cni"),
        *((bridged(mac=v), "mac") for v in NO_MACS),
        (bridged(runtimeConfig={"mac": "x"}), "runtimeConfig.mac"),
        (bridged(args={"cni": {"mac": "x"}}), "args.cni.mac"),
        *((bridged(ipam={"type": v}), "ipam.type") for v in NO_PLUGINS),
        (bridged(ipam={"subnet": "10.0.0.0/8"}), "ipam.type"),
        ({"linux": []}, "linux"),
        ({"linux": {}}, "linux.bridge"),
        *(({"linux": {"bridge": v}}, "linux.bridge") for v in NO_LINKS),
        *(({"linux": {"bridge": "br0", "vlan": v}}, "linux.vlan") for v in (0, 4095, "1", True)),
        *(({"linux": {"bridge": "br0", "gateway": v}}, "linux.gateway") for v in (1, "yes", None)),
        ({"linux": {"bridge": "br0", "gateway": True}}, "linux.gateway"),
        (chained(prevResult={"ips": 5}), "prevResult.ips"),
        (chained(prevResult=[]), "prevResult"),
        ({}, "linux"),
        (bridged(mode="veth", tap={}), "tap"),
        (bridged(mode="veth", resultStyle="tc-redirect-tap"), "resultStyle"),
        (chained(mode="veth"), "mode"),
        *((kube(kubeovn={"provider": v}), "kubeovn.provider") for v in ("", "A", "a_b", 5, None)),
        (kube(kubeovn={"provider": "ovn", "routes": 5}), "kubeovn.routes"),
        (kube(kubeovn="ovn"), "kubeovn"),
        (kube(ipam=IPAM), "ipam"),
        (kube(mac=MACS[1]), "mac"),
        (bridged(kubeovn={"provider": "ovn"}), "kubeovn"),
        (chained(mtu=1400), "mtu"),
        (chained(mac=MACS[1]), "mac"),
        (chained(ipam=IPAM), "ipam"),
    ],
)
def test_wrong_values_are_named_by_their_key(conf: dict[str, Any], key: str) -> None:
    with pytest.raises(BadConfig) as error:
        parse(conf)
    assert error.value.msg.startswith(f"{key}: ")


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, set()),
        ([], set()),
        ([{"containerID": "c1", "ifname": "eth0"}], {AttachmentKey("c1", "eth0")}),
        ([{"containerID": "c", "ifname": "e", "extra": 1}] * 2, {AttachmentKey("c", "e")}),
    ],
)
def test_valid_attachments(
    key: str, listed: list[dict[str, Any]] | None, expected: set[AttachmentKey]
) -> None:
    assert config.valid_attachments({key: listed}) == expected


def test_the_newer_list_wins() -> None:
    both = {"cni.dev/attachments": 5, "cni.dev/valid-attachments": []}
    assert config.valid_attachments(both) == set()


NO_LISTS: list[Any] = [{}, "c1", 0, ["c1"], [{}], [{"containerID": "c1"}], [None]]


@pytest.mark.parametrize("conf", [{}, *({"cni.dev/valid-attachments": v} for v in NO_LISTS)])
def test_gc_collects_nothing_on_a_doubtful_list(conf: dict[str, Any]) -> None:
    with pytest.raises(VmlinkError) as error:
        config.valid_attachments(conf)
    assert error.value.code == 7
