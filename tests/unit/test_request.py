"""The environment and stdin of a CNI call: what is refused, its code, and which error is first."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni.errors import (
    BadConfig,
    BadEnvironment,
    CannotDecode,
    IncompatibleVersion,
    UnknownContainer,
    VmlinkError,
)
from cni.spec import request as spec
from cni.spec.result import VERSIONS
from cni.spec.types import AttachmentKey, Request

ENV = {
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}
CONF = {"cniVersion": "1.1.0", "name": "net", "type": "vmlink"}


def parse(verb: str = "ADD", conf: Any = CONF, **env: str | None) -> Request:
    stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    given = {k: v for k, v in {**ENV, "CNI_COMMAND": verb, **env}.items() if v is not None}
    return spec.parse(given, stdin)


@pytest.mark.parametrize("verb", spec.NEEDS)
def test_a_call_is_read(verb: str) -> None:
    request = parse(verb, CNI_ARGS="IgnoreUnknown=1;MAC=02:00:00:00:00:01;Other=x")
    about_one = "CNI_IFNAME" in spec.NEEDS[verb]
    assert request.key == (AttachmentKey("c1", "eth0") if about_one else None)
    assert (request.verb, request.version, request.conf) == (verb, "1.1.0", CONF)
    assert request.args == {"IgnoreUnknown": "1", "MAC": "02:00:00:00:00:01"}
    assert request.netns_path == "/run/netns/x"


@pytest.mark.parametrize(
    ("verb", "name"), [(v, n) for v, names in spec.NEEDS.items() for n in names]
)
@pytest.mark.parametrize("value", [None, ""], ids=["missing", "empty"])
def test_each_needed_variable_is_named(verb: str, name: str, value: str | None) -> None:
    unknown = name == "CNI_CONTAINERID" and value == ""
    with pytest.raises(UnknownContainer if unknown else BadEnvironment, match=name):
        parse(verb, **{name: value})


def test_all_missing_variables_are_in_one_message() -> None:
    with pytest.raises(BadEnvironment) as error:
        spec.parse({"CNI_COMMAND": "ADD"}, b"{}")
    assert all(n in error.value.msg for n in spec.NEEDS["ADD"])


@pytest.mark.parametrize("netns", [None, ""])
def test_del_needs_no_namespace(netns: str | None) -> None:
    assert parse("DEL", CNI_NETNS=netns).netns_path == ""


@pytest.mark.parametrize("verb", ["", "add", "VERSION", "PURGE"])
def test_unknown_verbs(verb: str) -> None:
    with pytest.raises(BadEnvironment, match="CNI_COMMAND"):
        parse(verb)


@pytest.mark.parametrize("name", ["a", "0", "A_b.c-d", "x" * 200])
def test_names_that_are_fine(name: str) -> None:
    key = parse(CNI_CONTAINERID=name, conf={**CONF, "name": name}).key
    assert key is not None
    assert key.container_id == name


BAD_NAMES = [".", "..", "-a", "_a", ".a", "a/b", "../a", "a b", "a\n", "é", "a\0", "x" * 201]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_container_ids(name: str) -> None:
    with pytest.raises(BadEnvironment, match="CNI_CONTAINERID"):
        parse(CNI_CONTAINERID=name)


@pytest.mark.parametrize("name", [*BAD_NAMES, "", None, 5, ["net"]])
def test_bad_network_names(name: Any) -> None:
    with pytest.raises(BadConfig, match=r"^name: "):
        parse(conf={**CONF, "name": name})


@pytest.mark.parametrize("name", ["e", "eth0", "net-1_x.y", "x" * 15, "ü" * 7, "a@b"])
def test_interface_names_that_are_fine(name: str) -> None:
    key = parse(CNI_IFNAME=name).key
    assert key is not None
    assert key.ifname == name


@pytest.mark.parametrize(
    "name",
    [
        *(".", "..", "a/b", "a:b", "a b", "a\tb", "a\nb", "a\0b", "x" * 16, "ü" * 8),
        *("\u2003", "\x7f", "eth%d", "à", "\udcff", "\ud800"),
    ],
)
def test_bad_interface_names(name: str) -> None:
    with pytest.raises(BadEnvironment, match="CNI_IFNAME"):
        parse(CNI_IFNAME=name)


@pytest.mark.parametrize("verb", spec.NEEDS)
@pytest.mark.parametrize("version", VERSIONS)
def test_verbs_by_version(verb: str, version: str) -> None:
    conf = {**CONF, "cniVersion": version}
    if version >= spec.SINCE.get(verb, ""):
        assert parse(verb, conf).version == version
    else:
        with pytest.raises(IncompatibleVersion, match=spec.SINCE[verb]):
            parse(verb, conf)


@pytest.mark.parametrize("version", ["", "0.1.0", "0.2.0", "0.3.0", "1.2.0", "1.1", "v1.1.0"])
def test_versions_that_are_not_served(version: str) -> None:
    with pytest.raises(IncompatibleVersion, match=r"0\.3\.1.*1\.1\.0"):
        parse(conf={**CONF, "cniVersion": version})


def test_a_missing_version_means_0_1_0() -> None:
    with pytest.raises(IncompatibleVersion, match=r"0\.1\.0 is not served"):
        parse(conf={"name": "net"})


@pytest.mark.parametrize("version", [None, 1.1, ["1.1.0"]])
def test_a_version_is_a_string(version: Any) -> None:
    with pytest.raises(CannotDecode, match="cniVersion"):
        parse(conf={**CONF, "cniVersion": version})


@pytest.mark.parametrize(
    "stdin",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff{}", b"{}{}", b"[" * 100_000, b'{"a":' + b"9" * 5000],
    ids=["empty", "cut", "list", "null", "string", "utf-8", "twice", "deep", "long number"],
)
def test_stdin_that_is_no_object(stdin: bytes) -> None:
    with pytest.raises(CannotDecode, match=r"^stdin: "):
        parse(conf=stdin)
    assert spec.version_of(stdin) == VERSIONS[-1]


@pytest.mark.parametrize(
    ("stdin", "version"), [(b'{"cniVersion":"0.4.0"}', "0.4.0"), (b'{"cniVersion":4}', "1.1.0")]
)
def test_the_version_of_an_error(stdin: bytes, version: str) -> None:
    assert spec.version_of(stdin) == version


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("Unknown=1", "unknown Unknown"),
        ("IgnoreUnknown=0;Unknown=1", "unknown Unknown"),
        ("MAC", "not KEY=value"),
        ("=x", "not KEY=value"),
        ("K8S_POD_NAME=\udcff", "not UTF-8"),
    ],
)
def test_bad_args(args: str, message: str) -> None:
    with pytest.raises(BadEnvironment, match=f"^CNI_ARGS.*: .*{message}"):
        parse(CNI_ARGS=args)


@pytest.mark.parametrize("yes", ["1", "true", "True", "T"])
def test_args(yes: str) -> None:
    request = parse(CNI_ARGS=f";IgnoreUnknown={yes};X=y;IP=a=b;IP=;")
    assert request.args == {"IgnoreUnknown": yes, "IP": ""}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"CNI_COMMAND": "NO", "CNI_IFNAME": None, "CNI_CONTAINERID": ""}, 4),
        ({"CNI_IFNAME": None, "CNI_CONTAINERID": "", "conf": b"{"}, 3),
        ({"CNI_IFNAME": "a/b", "conf": b"{"}, 4),
        ({"CNI_ARGS": "x", "conf": b"{"}, 6),
        ({"CNI_ARGS": "x", "conf": {"cniVersion": "9", "name": "/"}}, 1),
        ({"CNI_ARGS": "x", "conf": {**CONF, "name": "/"}}, 7),
        ({"CNI_ARGS": "x"}, 4),
    ],
)
def test_the_first_of_several_faults_is_told(changes: dict[str, Any], code: int) -> None:
    with pytest.raises(VmlinkError) as error:
        parse(**changes)
    assert error.value.code == code
