"""One call of a CNI verb: its environment and the fields that every verb has, validated. Pure.

Source: CNI specification 1.1.0, sections 2 (execution protocol) and 4 (delegation).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from cni.errors import (
    BadConfig,
    BadEnvironment,
    CannotDecode,
    IncompatibleVersion,
    UnknownContainer,
    VmlinkError,
)
from cni.spec import capabilities
from cni.spec.result import VERSIONS
from cni.spec.types import AttachmentKey, Request, is_plain

T = TypeVar("T")

_ATTACHMENT = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")
# Each verb with the variables that it requires.
NEEDS = {
    "ADD": _ATTACHMENT,
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": _ATTACHMENT,
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
}
# The CNI version that a verb came with; the others are as old as the oldest that is served.
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
# The keys of CNI_ARGS that are used; the runtimes that set them are in docs/runtimes.md.
ARGS = frozenset(
    "IgnoreUnknown MAC IP K8S_POD_NAME K8S_POD_NAMESPACE K8S_POD_INFRA_CONTAINER_ID K8S_POD_UID "
    "TC_REDIRECT_TAP_NAME TC_REDIRECT_TAP_UID TC_REDIRECT_TAP_GID".split()
)
# What Multus puts beside the network's own keys when a device plugin chose a device for the pod.
DEVICE_KEYS = frozenset({"deviceID", "pciBusID"})
# Keys of the network configuration that the runtime sets anew for each call; all others are the
# network's own and stay the same from pod to pod.
PER_CALL_KEYS = DEVICE_KEYS.union(
    "cniVersion prevResult runtimeConfig args cni.dev/valid-attachments cni.dev/attachments".split()
)

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*", re.ASCII)
_NAME_LIMIT = 200  # IPAM stores name files after these, and a file name has at most 255 bytes


def parse(env: Mapping[str, str], stdin: bytes) -> Request:
    """Validate one call; `env` has the CNI_* variables, `stdin` the network configuration.

    Raises BadEnvironment, UnknownContainer (an empty container id), CannotDecode,
    IncompatibleVersion or BadConfig, in the order in which the skel package of libcni checks. A DEL
    raises the first two alone, for a variable that is missing.
    """
    verb = env.get("CNI_COMMAND", "")
    if verb not in NEEDS:
        raise BadEnvironment(f"CNI_COMMAND: expected one of {_list(NEEDS)}, found {verb!r}")
    _refuse_missing(verb, env)
    if verb == "DEL":
        return _delete(env, stdin)
    key = _key(env) if "CNI_IFNAME" in NEEDS[verb] else None
    conf = decode(stdin)
    version = _version(conf, verb)
    check_network_name(conf.get("name"), "name")
    return Request(
        verb=verb,
        version=version,
        conf=conf,
        stdin=stdin,
        env=dict(env),
        args=_args(env.get("CNI_ARGS", "")),
        key=key,
        netns_path=env.get("CNI_NETNS", ""),
    )


def _delete(env: Mapping[str, str], stdin: bytes) -> Request:
    """Read what can be read of a DEL; what an ADD would be refused for are its `flaws`.

    A runtime that cannot DEL cannot remove the sandbox. The key is None where its names are none
    that an attachment could have, the network's name "" where no network could have it.
    """
    flaws: list[str] = []

    def tried(read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except VmlinkError as e:
            flaws.append(e.msg)
            return otherwise

    key = tried(lambda: _key(env), None)
    conf: dict[str, Any] = tried(lambda: decode(stdin), {})
    version = tried(lambda: _version(conf, "DEL"), VERSIONS[-1])
    text = env.get("CNI_ARGS", "")
    args = tried(
        lambda: _args(text), {k: v for k, _, v in _pairs(text) if k in ARGS and is_plain(v)}
    )
    name = tried(lambda: check_network_name(conf.get("name"), "name"), "")
    return Request(
        verb="DEL",
        version=version,
        conf={**conf, "name": name},
        stdin=stdin,
        env=dict(env),
        args=args,
        key=key,
        netns_path=env.get("CNI_NETNS", ""),
        flaws=tuple(flaws),
    )


def decode(stdin: bytes) -> dict[str, Any]:
    """Decode the network configuration. Raises CannotDecode, which says where it is broken."""
    try:
        conf = json.loads(stdin.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise CannotDecode(f"stdin: not UTF-8 at byte {e.start}") from e
    except (ValueError, RecursionError) as e:
        raise CannotDecode(f"stdin: not JSON: {e}") from e
    if not isinstance(conf, dict):
        raise CannotDecode(f"stdin: expected a JSON object, found {type(conf).__name__}")
    if "runtimeConfig" in conf:
        conf["runtimeConfig"] = capabilities.spelled(conf["runtimeConfig"])
    return conf


def version_of(stdin: bytes) -> str:
    """The cniVersion to answer with when the call could not be parsed."""
    try:
        version = decode(stdin).get("cniVersion")
    except CannotDecode:
        return VERSIONS[-1]
    return version if isinstance(version, str) else VERSIONS[-1]


def _refuse_missing(verb: str, env: Mapping[str, str]) -> None:
    missing = [name for name in NEEDS[verb] if name not in env]
    if "CNI_CONTAINERID" in NEEDS[verb] and env.get("CNI_CONTAINERID") == "":
        raise UnknownContainer("CNI_CONTAINERID: is empty; set it to the container's id")
    missing += [n for n in NEEDS[verb] if env.get(n) == ""]
    if missing:
        raise BadEnvironment(f"{_list(missing)}: required for {verb}")


def _key(env: Mapping[str, str]) -> AttachmentKey:
    container, ifname = env["CNI_CONTAINERID"], env["CNI_IFNAME"]
    check_container_id(container, "CNI_CONTAINERID")
    check_ifname(ifname, "CNI_IFNAME")
    return AttachmentKey(container, ifname)


def check_container_id(name: str, where: str) -> None:
    """Check a container id by CNI's rule. Raises BadEnvironment, which begins with `where`."""
    if reason := _bad_name(name):
        raise BadEnvironment(f"{where}: {reason}")


def check_ifname(name: str, where: str) -> None:
    """Check an interface name by the kernel's rule, dev_valid_name() in net/core/dev.c.

    '%' is refused as well: the kernel would put a number in its place, and DEL would not find the
    link. Raises BadEnvironment, which begins with `where`.
    """
    if (
        name in ("", ".", "..")
        or re.search(r"[/:\s\0%]", name)
        or not name.isprintable()  # a lone surrogate is not, and could not be encoded below
        or len(name.encode()) > 15
        or b"\xa0" in name.encode()  # isspace() of the kernel takes it for a space (Latin-1)
    ):
        raise BadEnvironment(
            f"{where}: {name!r} is not an interface name: 1 to 15 printable bytes, not '.' or "
            "'..', without '/', ':', '%' and white space"
        )


def _version(conf: Mapping[str, Any], verb: str) -> str:
    version = conf.get("cniVersion", "0.1.0")
    if not isinstance(version, str):
        raise CannotDecode(f"cniVersion: expected a string, found {version!r}")
    if version not in VERSIONS:
        raise IncompatibleVersion(
            f"cniVersion: {version or '(empty)'} is not served; use one of {_list(VERSIONS)}"
        )
    since = SINCE.get(verb, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(since):
        raise IncompatibleVersion(f"cniVersion: {verb} needs {since} or newer, found {version}")
    return version


def check_network_name(name: Any, where: str) -> str:
    """Return a network's name. Raises BadConfig, which begins with `where`, by CNI's rule."""
    if reason := _bad_name(name):
        raise BadConfig(f"{where}: {reason}")
    return str(name)


def _bad_name(name: Any) -> str:
    """Say what is wrong with the name of a container or network; "" for nothing."""
    if isinstance(name, str) and _NAME.fullmatch(name) and len(name) <= _NAME_LIMIT:
        return ""
    return (
        f"{name!r} must start with a letter or digit and contain letters, digits, '_', '.', '-' "
        f"only, {_NAME_LIMIT} at most"
    )


def _args(text: str) -> dict[str, str]:
    """Parse CNI_ARGS, `KEY=value;KEY=value`.

    Unknown keys are an error unless IgnoreUnknown is true (CNI conventions, CNI_ARGS).
    """
    out: dict[str, str] = {}
    for key, equals, value in _pairs(text):
        if not equals or not key:
            raise BadEnvironment(f"CNI_ARGS: {key + equals + value!r} is not KEY=value")
        if not is_plain(value):
            raise BadEnvironment(f"CNI_ARGS {key}: {value!r} is not UTF-8; correct it")
        out[key] = value
    unknown = [k for k in out if k not in ARGS]
    if unknown and out.get("IgnoreUnknown", "").lower() not in ("1", "t", "true"):
        raise BadEnvironment(
            f"CNI_ARGS: unknown {_list(unknown)}, known are {_list(sorted(ARGS))}; remove what is "
            "unknown or set IgnoreUnknown=1"
        )
    return {k: v for k, v in out.items() if k in ARGS}


def _pairs(text: str) -> list[tuple[str, str, str]]:
    return [pair.partition("=") for pair in text.split(";") if pair]


def _list(items: Iterable[str]) -> str:
    return ", ".join(items)
