"""CNI verbs, their environment and their common fields. Pure.

Source: CNI specification 1.1.0, sections 2 (execution protocol) and 4 (delegation), and the
table in docs/architecture.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from cni.errors import (
    BadConfig,
    BadEnvironment,
    CannotDecode,
    IncompatibleVersion,
    UnknownContainer,
)
from cni.spec.result import VERSIONS
from cni.spec.types import AttachmentKey, Request

_ATTACHMENT = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")
NEEDS = {
    "ADD": _ATTACHMENT,
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": _ATTACHMENT,
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
}
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
ARGS = frozenset(
    "IgnoreUnknown MAC IP K8S_POD_NAME K8S_POD_NAMESPACE K8S_POD_INFRA_CONTAINER_ID K8S_POD_UID "
    "TC_REDIRECT_TAP_NAME TC_REDIRECT_TAP_UID TC_REDIRECT_TAP_GID".split()
)

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*", re.ASCII)
_NAME_LIMIT = 200  # a file name ends at 255 bytes, and IPAM stores name files after these


def parse(env: Mapping[str, str], stdin: bytes) -> Request:
    """Validate one call.

    Raises BadEnvironment, UnknownContainer (an empty container id), CannotDecode,
    IncompatibleVersion or BadConfig, in the order in which libcni's own skeleton looks.
    """
    verb = env.get("CNI_COMMAND", "")
    if verb not in NEEDS:
        raise BadEnvironment(f"CNI_COMMAND: unknown verb {verb!r}, expected one of {_words(NEEDS)}")
    _refuse_missing(verb, env)
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


def decode(stdin: bytes) -> dict[str, Any]:
    """The network configuration as an object; CannotDecode says where it is broken."""
    try:
        conf = json.loads(stdin.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise CannotDecode(f"stdin: not UTF-8 at byte {e.start}") from e
    except (ValueError, RecursionError) as e:
        raise CannotDecode(f"stdin: not JSON: {e}") from e
    if not isinstance(conf, dict):
        raise CannotDecode(f"stdin: expected a JSON object, found {type(conf).__name__}")
    return conf


def version_of(stdin: bytes) -> str:
    """The version for an error's `cniVersion` when the call could not be parsed."""
    try:
        found = decode(stdin).get("cniVersion")
    except CannotDecode:
        return VERSIONS[-1]
    return found if isinstance(found, str) else VERSIONS[-1]


def _refuse_missing(verb: str, env: Mapping[str, str]) -> None:
    missing = [name for name in NEEDS[verb] if name not in env]
    if "CNI_CONTAINERID" in NEEDS[verb] and env.get("CNI_CONTAINERID") == "":
        raise UnknownContainer("CNI_CONTAINERID: is empty")
    missing += [n for n in NEEDS[verb] if env.get(n) == ""]
    if missing:
        raise BadEnvironment(f"{_words(missing)}: required for {verb}")


def _key(env: Mapping[str, str]) -> AttachmentKey:
    container, ifname = env["CNI_CONTAINERID"], env["CNI_IFNAME"]
    check_container_id(container, "CNI_CONTAINERID")
    check_ifname(ifname, "CNI_IFNAME")
    return AttachmentKey(container, ifname)


def check_container_id(name: str, where: str) -> None:
    """Raises BadEnvironment, which begins with `where`."""
    if reason := _bad_name(name):
        raise BadEnvironment(f"{where}: {reason}")


def check_ifname(name: str, where: str) -> None:
    """The kernel's rule for link names (dev_valid_name in net/core/dev.c), as CNI has it.

    A '%' makes the kernel choose a name of its own, which nobody would find again.
    """
    if (
        name in ("", ".", "..")
        or re.search(r"[/:\s\0%]", name)
        or not name.isprintable()  # nor is a lone surrogate, which has no bytes
        or len(name.encode()) > 15
        or b"\xa0" in name.encode()  # a space to the kernel, which reads Latin-1
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
            f"cniVersion: {version or '(empty)'} is not served, use one of {_words(VERSIONS)}"
        )
    since = SINCE.get(verb, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(since):
        raise IncompatibleVersion(f"cniVersion: {verb} needs {since} or newer, found {version}")
    return version


def check_network_name(name: Any, where: str) -> None:
    """Raises BadConfig, which begins with `where`."""
    if reason := _bad_name(name):
        raise BadConfig(f"{where}: {reason}")


def _bad_name(name: Any) -> str:
    """Empty for a name as CNI has it for containers and networks."""
    if isinstance(name, str) and _NAME.fullmatch(name) and len(name) <= _NAME_LIMIT:
        return ""
    return (
        f"{name!r} must start with a letter or digit and contain letters, digits, '_', '.', '-' "
        f"only, {_NAME_LIMIT} at most"
    )


def _args(text: str) -> dict[str, str]:
    """CNI_ARGS: `KEY=value;KEY=value`. Unknown keys are an error unless IgnoreUnknown is true."""
    out: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        key, found, value = pair.partition("=")
        if not found or not key:
            raise BadEnvironment(f"CNI_ARGS: {pair!r} is not KEY=value")
        out[key] = value
    unknown = [k for k in out if k not in ARGS]
    if unknown and out.get("IgnoreUnknown", "").lower() not in ("1", "t", "true"):
        raise BadEnvironment(
            f"CNI_ARGS: unknown {_words(unknown)}; known are {_words(sorted(ARGS))}, "
            "or set IgnoreUnknown=1"
        )
    return {k: v for k, v in out.items() if k in ARGS}


def _words(items: Any) -> str:
    return ", ".join(items)
