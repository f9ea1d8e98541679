"""The ifindex of a name, without an ioctl that takes a name.

For an ioctl about a link that is not there (SIOCGIFINDEX, SIOCGIFMTU, SIOCETHTOOL and others), the
kernel executes modprobe twice, and loads the module of that name: who names interfaces would load
modules. Binding a socket to a name only looks it up, and waits for no lock. Sources: socket(7),
SO_BINDTODEVICE; dev_load() in net/core/dev_ioctl.c.
"""

from __future__ import annotations

import errno as errnos
import socket

SO_BINDTODEVICE, SO_BINDTOIFINDEX = 25, 62


def index_by(bound: socket.socket, name: str) -> int | None:
    """The ifindex of a name in the socket's namespace, None for no such link.

    It binds the socket, which does not matter to netlink. To bind one again takes CAP_NET_RAW.
    Raises OSError.
    """
    try:
        bound.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, name.encode())
    except OSError as error:
        if error.errno == errnos.ENODEV:
            return None
        raise
    return bound.getsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX) or None


def index_here(name: str) -> int | None:
    """The ifindex of a name in the calling thread's namespace, None for no such link.

    Raises OSError.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as unbound:
        return index_by(unbound, name)
