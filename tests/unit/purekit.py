"""What pure tests start from: a context whose kernel is never asked, pyroute2's encoding."""

from cni.attach.context import Context, Node
from cni.cancel import Cancel
from cni.config import network as config
from cni.spec import request as spec
from cni.spec.types import AttachmentKey, Result

KEY = AttachmentKey("c1", "eth0")
NETNS = "/run/netns/x"
REQUEST, CREATE_EXCL = 0x1, 0x601  # flags of a netlink message


def context(facts=None, given=None, seconds=60, gone=lambda: False, key=KEY):
    made = Context(
        key=key,
        node=Node(None, None, None, None),
        host_netlink=None,
        pod=None,
        cancel=Cancel(seconds, gone),
        ipam_call=None,
        facts=facts,
    )
    made.pending_ipam = lambda _seconds: given or Result()
    return made


def netconf(**conf):
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "vmlink", **conf}
    request = spec.Request("ADD", "1.1.0", conf, b"", {}, {}, KEY, NETNS)
    return config.parse(request)


def pyroute(cls, kind, flags, fields, attrs):
    message = cls()
    message["header"] = {"type": kind, "flags": flags, "sequence_number": 7, "pid": 0}
    message.update(fields)
    message["attrs"] = attrs
    message.encode()
    return bytes(message.data)
