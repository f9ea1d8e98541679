"""kube-ovn's own plugin is served here: the pods that are VMs by vmlink, the others by kube-ovn.

Source: kube-ovn, cmd/cni and pkg/request/cniserver.go.
"""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Any

from cni.cancel import Cancel
from cni.config import network as config
from cni.config.settings import KubeOvnSocket
from cni.daemon import handler, http
from cni.daemon.engine import Engine
from cni.daemon.http import HttpRequest
from cni.daemon.workers import hang_up, refuse_strangers
from cni.errors import BadConfig, CannotDecode, VmlinkError
from cni.kernel.netns import descriptor
from cni.kubeovn.pod_network import PodConfigs
from cni.spec import result
from cni.spec.protocol import Frame
from cni.spec.types import AttachmentKey, Request

log = logging.getLogger("vmlink")

_ADD, _DEL = "/api/v1/add", "/api/v1/del"
_OURS = "kube-ovn"  # cni_type of what is a port; other types only ask for addresses
_VERSION = result.VERSIONS[-1]
_POD = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_PEER_SECONDS = 10
_PASSED_SECONDS = 300  # kube-ovn's daemon may wait 200 s for a gateway that does not answer

Reply = tuple[int, dict[str, Any] | None]  # status and content


@dataclass(frozen=True)
class CniRequest:
    """The fields of kube-ovn's request that vmlink needs; what it does not know is passed over."""

    cni_type: str = ""
    pod_name: str = ""
    pod_namespace: str = ""
    container_id: str = ""
    net_ns: str = ""
    if_name: str = ""
    provider: str = ""
    routes: list[Any] = field(default_factory=list)
    dns: dict[str, Any] = field(default_factory=dict)
    deviceID: str = ""
    vhost_user_socket_volume_name: str = ""

    @staticmethod
    def parse(body: bytes) -> CniRequest:
        """Raises CannotDecode, which names the field."""
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as e:
            raise CannotDecode(f"the request's body: not JSON: {e}") from e
        if not isinstance(data, dict):
            raise CannotDecode("the request's body: expected a JSON object")
        default, found = CniRequest(), {}
        for name, usual in vars(default).items():
            value = data.get(name)
            if value is not None and not isinstance(value, type(usual)):
                raise CannotDecode(f"{name}: expected {type(usual).__name__}, found {value!r}")
            found[name] = usual if value is None else value
        for name in ("pod_name", "pod_namespace"):
            if not _POD.fullmatch(found[name]):
                raise CannotDecode(f"{name}: expected a name of Kubernetes, found {found[name]!r}")
        return CniRequest(**{**found, "if_name": found["if_name"] or "eth0"})

    @property
    def key(self) -> AttachmentKey:
        return AttachmentKey(self.container_id, self.if_name)

    @property
    def may_be_ours(self) -> bool:
        """A port, and none for which kube-ovn has a VF or a vhost-user socket of its own."""
        own_way = self.deviceID or self.vhost_user_socket_volume_name
        return self.cni_type == _OURS and bool(self.provider) and not own_way


class Front:
    """Serves the second socket."""

    def __init__(
        self, engine: Engine, configs: PodConfigs, settings: KubeOvnSocket, seconds: float
    ) -> None:
        self._engine = engine
        self._configs = configs
        self._settings = settings
        self._seconds = seconds

    def check(self) -> None:
        """Raises BadConfig when `network` is no good."""
        try:
            conf = self._conf(CniRequest(provider="ovn"))
            config.parse(Request("ADD", _VERSION, conf, b"", {}))
        except VmlinkError as e:
            raise BadConfig(f"vmlinkd.yaml: kubeovn.network: {e.msg}") from e

    def serve(self, conn: socket.socket) -> None:
        """One request. Never raises an Exception."""
        conn.settimeout(_PEER_SECONDS)
        try:
            if reply := self._reply(conn):
                http.answer(conn, *reply)
        except OSError as e:
            log.info("kube-ovn's plugin hung up: %s", e)
        except Exception:
            log.exception("internal error")

    def _reply(self, conn: socket.socket) -> Reply | None:
        """None when there has been one."""
        cancel = Cancel(self._seconds, hang_up(conn))
        try:
            refuse_strangers(conn)
            request = http.receive(conn)
            call = self._ours(request, cancel)
        except VmlinkError as e:
            log.warning("kube-ovn's plugin: %s", e.msg)
            return 400 if isinstance(e, CannotDecode) else 500, {"error": e.msg}
        if call is None:
            return self._pass_on(conn, request)
        if request.path == _DEL:
            return self._del(call)
        self._add(conn, call, cancel)
        return None

    def _ours(self, request: HttpRequest, cancel: Cancel) -> CniRequest | None:
        """None for what is kube-ovn's. A DEL is for who did the ADD, whatever is said now."""
        if request.method != "POST" or request.path not in (_ADD, _DEL):
            return None
        call = CniRequest.parse(request.body)
        if request.path == _DEL:
            return call if self._engine.attached(call.key) else None
        return call if call.may_be_ours and self._is_vm(call, cancel) else None

    def _is_vm(self, call: CniRequest, cancel: Cancel) -> bool:
        if call.provider in self._settings.providers:
            return True
        name = (call.pod_namespace, call.pod_name)
        pod = self._configs.pods.wait(name, "", lambda _: "", cancel)
        return self._configs.chosen(pod) is not None

    def _pass_on(self, conn: socket.socket, request: HttpRequest) -> Reply | None:
        try:
            http.pass_on(conn, request.raw, self._settings.daemon, _PASSED_SECONDS)
        except VmlinkError as e:
            log.warning("%s", e.msg)
            return 502, {"error": e.msg}
        return None

    def _add(self, conn: socket.socket, call: CniRequest, cancel: Cancel) -> None:
        frame = self._frame("ADD", call)
        done = handler.answer(
            self._engine, frame, descriptor(call.net_ns), cancel.remaining(), hang_up(conn)
        )
        said = json.loads(done.body)
        try:
            if done.code:
                http.answer(conn, 500, {"error": said["msg"]})
            else:
                http.answer(conn, 200, _content(said))
        except OSError:
            handler.undo_unheard(self._engine, frame, done.code, self._seconds)
        done.log()

    def _del(self, call: CniRequest) -> Reply:
        done = handler.answer(
            self._engine,
            self._frame("DEL", call),
            descriptor(call.net_ns),
            self._seconds,
            lambda: False,
        )
        done.log()
        return (500, {"error": json.loads(done.body)["msg"]}) if done.code else (204, None)

    def _frame(self, verb: str, call: CniRequest) -> Frame:
        """The same request as vmlink's own client would send it."""
        env = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": call.container_id,
            "CNI_NETNS": call.net_ns,
            "CNI_IFNAME": call.if_name,
            "CNI_ARGS": f"K8S_POD_NAMESPACE={call.pod_namespace};K8S_POD_NAME={call.pod_name}",
        }
        return Frame(env, json.dumps(self._conf(call)).encode())

    def _conf(self, call: CniRequest) -> dict[str, Any]:
        given = {"cniVersion": _VERSION, "name": _OURS, "type": "vmlink", **self._settings.network}
        section = {"provider": call.provider, "routes": call.routes}
        return given | {"kubeovn": section} | ({"dns": call.dns} if call.dns else {})


def _content(found: Mapping[str, Any]) -> dict[str, Any]:
    """kube-ovn's answer. Its plugin makes a default route of each gateway by itself."""
    pod = found["interfaces"][0]
    routes = {(route["dst"], route.get("gw", "")) for route in found["routes"]}
    ips = []
    for ip in found["ips"]:
        address, gateway = ip_interface(ip["address"]), ip.get("gateway", "")
        default = ("::/0" if address.version == 6 else "0.0.0.0/0", gateway)
        ips.append(
            {
                "protocol": f"IPv{address.version}",
                "ip": str(address.ip),
                "cidr": str(address.network),
                "gateway": gateway if default in routes else "",
            }
        )
        routes.discard(default)
    return {
        "ips": ips,
        "mac_address": pod["mac"],
        "routes": [{"dst": dst, "gw": gw} for dst, gw in sorted(routes)],
        "mtu": pod["mtu"],
        "nicname": pod["name"],
        "dns": found["dns"],
        "error": "",
    }
