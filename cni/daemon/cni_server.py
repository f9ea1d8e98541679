"""The socket that vmlink's CNI client connects to: one request on each connection."""

from __future__ import annotations

import logging
import socket

from cni.daemon import handler
from cni.daemon.engine import Engine
from cni.daemon.workers import peer_gone, refuse_strangers
from cni.errors import VmlinkError
from cni.spec import protocol

log = logging.getLogger("vmlink")

_PEER_SECONDS = 10  # for each piece: the client sends and receives without delay


class CniServer:
    """Serves the requests of cni/plugins/vmlink.c, each for `seconds` at most."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._engine = engine
        self._seconds = seconds

    def serve(self, conn: socket.socket) -> None:
        """Serve the request of one connection, which the caller closes. Never raises."""
        conn.settimeout(_PEER_SECONDS)
        try:
            refuse_strangers(conn)
            frame, fd = protocol.receive(conn)
        except VmlinkError as e:
            log.warning("a request was refused: %s", e.msg)
            return
        answer = handler.answer(self._engine, frame, fd, self._seconds, peer_gone(conn))
        try:
            conn.sendall(protocol.encode_answer(answer.code, answer.body))
        except (OSError, VmlinkError):  # VmlinkError: the answer is too long
            handler.undo_unheard(self._engine, frame, answer.code, self._seconds)
        answer.log()
