"""What pure tests of plans and outcomes start from: a context whose kernel is never asked."""

from cni import config, spec
from cni.context import Cancel, Context, Node
from cni.types import AttachmentKey, Result

KEY = AttachmentKey("c1", "eth0")
NETNS = "/run/netns/x"


def context(facts=None, given=None, seconds=60, gone=lambda: False):
    made = Context(
        key=KEY,
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
