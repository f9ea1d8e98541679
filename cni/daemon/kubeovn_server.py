"""The socket that kube-ovn's own plugin connects to.

Pods that are VMs are served here, as for vmlink's own client; requests for all others are passed
on to kube-ovn's daemon. Source: kube-ovn, cmd/cni/cni.go and pkg/request/cniserver.go.
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
from cni.config import network, readers
from cni.config.mode_rules import Rules
from cni.config.settings import KubeOvnSocket
from cni.daemon import handler, http
from cni.daemon.engine import Engine
from cni.daemon.http import HttpRequest
from cni.daemon.workers import peer_gone, refuse_strangers
from cni.errors import BadConfig, CannotDecode, VmlinkError
from cni.kernel.netns import descriptor
from cni.kubeovn.pod_network import PodNetworks
from cni.spec import result
from cni.spec.protocol import Frame
from cni.spec.routing import DEFAULTS
from cni.spec.types import AttachmentKey, Request

log = logging.getLogger("vmlink")

_ADD, _DEL = "/api/v1/add", "/api/v1/del"
_PORT = "kube-ovn"  # cni_type of a request for a port; other types only ask for addresses
_VERSION = result.VERSIONS[-1]
_POD = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_PEER_SECONDS = 10  # for each piece of a request and of an answer
_PASSED_SECONDS = 300  # kube-ovn's daemon may wait 200 s for a gateway that does not answer

Reply = tuple[int, dict[str, Any] | None]  # status and content


@dataclass(frozen=True)
class CniRequest:
    """The fields of kube-ovn's request that vmlink needs; all others are ignored."""

    cni_type: str = ""
    pod_name: str = ""
    pod_namespace: str = ""
    container_id: str = ""
    net_ns: str = ""
    if_name: str = "eth0"
    provider: str = ""
    routes: list[Any] = field(default_factory=list)
    dns: Mapping[str, Any] = field(default_factory=dict)
    device_id: str = ""
    vhost_user_socket_volume_name: str = ""

    @staticmethod
    def parse(body: bytes) -> CniRequest:
        """Read the body of a request. Raises CannotDecode, which names the field."""
        try:
            data = readers.as_object(json.loads(body), "the request's body")
            return CniRequest._read(data)
        except BadConfig as e:
            raise CannotDecode(e.msg) from e
        except (ValueError, RecursionError) as e:
            raise CannotDecode(f"the request's body: not JSON: {e}") from e

    @staticmethod
    def _read(data: Mapping[str, Any]) -> CniRequest:
        for name in ("pod_name", "pod_namespace"):
            if not _POD.fullmatch(readers.text(data, name)):
                raise BadConfig(f"{name}: expected a name of Kubernetes, found {data.get(name)!r}")
        return CniRequest(
            cni_type=readers.text(data, "cni_type"),
            pod_name=readers.text(data, "pod_name"),
            pod_namespace=readers.text(data, "pod_namespace"),
            container_id=readers.text(data, "container_id"),
            net_ns=readers.text(data, "net_ns"),
            if_name=readers.text(data, "if_name") or CniRequest.if_name,
            provider=readers.text(data, "provider"),
            routes=readers.items(data, "routes"),
            dns=readers.obj(data, "dns"),
            device_id=readers.text(data, "deviceID"),
            vhost_user_socket_volume_name=readers.text(data, "vhost_user_socket_volume_name"),
        )

    @property
    def key(self) -> AttachmentKey:
        """The attachment that it is about."""
        return AttachmentKey(self.container_id, self.if_name)

    @property
    def pod(self) -> tuple[str, str]:
        """The pod's namespace and name."""
        return self.pod_namespace, self.pod_name

    @property
    def may_be_ours(self) -> bool:
        """Whether it asks for a port, and not for a VF or a vhost-user socket of kube-ovn's."""
        kube_ovns = self.device_id or self.vhost_user_socket_volume_name
        return self.cni_type == _PORT and bool(self.provider) and not kube_ovns


def check_network(settings: KubeOvnSocket, rules: Rules, where: str) -> None:
    """Raise BadConfig, beginning with `where`, when `network` is no configuration for kube-ovn."""
    try:
        conf = _network_conf(settings, CniRequest(provider="ovn"))
        pod = {"K8S_POD_NAMESPACE": "any", "K8S_POD_NAME": "any"}  # which each request has
        network.parse(Request("ADD", _VERSION, conf, b"", {}, pod), rules)
    except VmlinkError as e:
        raise BadConfig(f"{where}: {e.msg}") from e


class KubeOvnServer:
    """Serves kube-ovn's plugin; an ADD or DEL of ours for `seconds` at most."""

    def __init__(
        self, engine: Engine, networks: PodNetworks, settings: KubeOvnSocket, seconds: float
    ) -> None:
        self._engine = engine
        self._networks = networks
        self._settings = settings
        self._seconds = seconds

    def serve(self, conn: socket.socket) -> None:
        """Serve the request of one connection, which the caller closes. Never raises."""
        conn.settimeout(_PEER_SECONDS)
        try:
            if reply := self._reply(conn):
                http.answer(conn, *reply)
        except OSError as e:
            log.info("kube-ovn's plugin hung up: %s", e)
        except Exception:
            log.exception("internal error")

    def _reply(self, conn: socket.socket) -> Reply | None:
        """None when the answer has been sent already."""
        cancel = Cancel(self._seconds, peer_gone(conn))
        try:
            refuse_strangers(conn)
            request = http.receive(conn)
            call = self._ours(request, cancel)
        except VmlinkError as e:
            log.warning("a request of kube-ovn's plugin was refused: %s", e.msg)
            return 400 if isinstance(e, CannotDecode) else 500, {"error": e.msg}
        if call is None:
            return self._pass_on(conn, request)
        if request.path == _DEL:
            return self._del(call)
        self._add(conn, call, cancel)
        return None

    def _ours(self, request: HttpRequest, cancel: Cancel) -> CniRequest | None:
        """None for what is kube-ovn's: an ADD of a plain pod, and a DEL of what we did not ADD."""
        if request.method != "POST" or request.path not in (_ADD, _DEL):
            return None
        call = CniRequest.parse(request.body)
        if request.path == _DEL:  # the pod's annotations may have changed since the ADD
            return call if self._engine.attached(call.key) else None
        return call if call.may_be_ours and self._is_vm(call, cancel) else None

    def _is_vm(self, call: CniRequest, cancel: Cancel) -> bool:
        if call.provider in self._settings.providers:
            return True
        pod = self._networks.pods.wait(call.pod, "", lambda _: "", cancel)
        return self._networks.chosen(pod) is not None

    def _pass_on(self, conn: socket.socket, request: HttpRequest) -> Reply | None:
        try:
            http.pass_on(conn, request.raw, self._settings.daemon, _PASSED_SECONDS)
        except VmlinkError as e:
            log.warning("%s", e.msg)
            return 502, {"error": e.msg}
        return None

    def _add(self, conn: socket.socket, call: CniRequest, cancel: Cancel) -> None:
        frame = self._frame("ADD", call)
        answer = handler.answer(
            self._engine, frame, descriptor(call.net_ns), cancel.remaining(), peer_gone(conn)
        )
        content = json.loads(answer.body)
        try:
            if answer.code:
                http.answer(conn, 500, {"error": content["msg"]})
            else:
                http.answer(conn, 200, _response(content))
        except OSError:
            handler.undo_unheard(self._engine, frame, answer.code, self._seconds)
        answer.log()

    def _del(self, call: CniRequest) -> Reply:
        fd = descriptor(call.net_ns)
        frame = self._frame("DEL", call)
        answer = handler.answer(self._engine, frame, fd, self._seconds, lambda: False)
        answer.log()
        return (500, {"error": json.loads(answer.body)["msg"]}) if answer.code else (204, None)

    def _frame(self, verb: str, call: CniRequest) -> Frame:
        """Make the request that vmlink's own client would send."""
        env = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": call.container_id,
            "CNI_NETNS": call.net_ns,
            "CNI_IFNAME": call.if_name,
            "CNI_ARGS": f"K8S_POD_NAMESPACE={call.pod_namespace};K8S_POD_NAME={call.pod_name}",
        }
        return Frame(env, json.dumps(_network_conf(self._settings, call)).encode())


def _network_conf(settings: KubeOvnSocket, call: CniRequest) -> dict[str, Any]:
    return {
        "cniVersion": _VERSION,
        "name": _PORT,
        "type": "vmlink",
        **settings.network,
        "kubeovn": {"provider": call.provider, "routes": call.routes},
        **({"dns": call.dns} if call.dns else {}),
    }


def _response(content: Mapping[str, Any]) -> dict[str, Any]:
    """Make kube-ovn's CniResponse of a CNI result.

    kube-ovn's plugin adds a default route by each gateway on its own, so a gateway is named only
    where the result has that route.
    """
    pod = content["interfaces"][0]
    routes = {(route["dst"], route.get("gw", "")) for route in content["routes"]}
    ips = []
    for ip in content["ips"]:
        address, gateway = ip_interface(ip["address"]), ip.get("gateway", "")
        default = (DEFAULTS[address.version], gateway)
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
        "dns": content["dns"],
        "error": "",
    }
