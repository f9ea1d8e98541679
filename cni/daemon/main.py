"""vmlinkd: the sockets, the queue of DELs, and the life of the process."""

from __future__ import annotations

import argparse
import faulthandler
import fcntl
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cni import __version__
from cni.attach.context import Node
from cni.attach.records import Store
from cni.config import settings
from cni.config.settings import Ovs, Settings
from cni.daemon import handler as service
from cni.daemon.engine import Engine
from cni.daemon.pool import Pools
from cni.daemon.workers import Workers, hang_up, refuse_strangers
from cni.errors import VmlinkError
from cni.kernel import redirect
from cni.kernel.link_deleter import LinkDeleter
from cni.kernel.netns import Namespace, descriptor
from cni.kubeovn.pod_network import PodConfigs
from cni.kubeovn.pods import Pods
from cni.ovs.database import Database
from cni.ovs.port_ops import Collect
from cni.spec import protocol
from cni.spec.types import AttachmentKey

log = logging.getLogger("vmlink")

_PEER_SECONDS = 10  # a client sends and reads at once, or it is stuck
_REQUEST_IS_WRONG = (1, 2, 3, 4, 6, 7)  # codes of the specification that no retry changes
_BACKLOG = 4096  # as many as net.core.somaxconn usually allows


class Door:
    """Where the executed client comes: one request of wire.py on each connection."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._engine = engine
        self._seconds = seconds

    def serve(self, conn: socket.socket) -> None:
        conn.settimeout(_PEER_SECONDS)
        try:
            refuse_strangers(conn)
            frame, fd = protocol.receive(conn)
        except VmlinkError as e:
            log.warning("a request was not understood: %s", e.msg)
            return
        answer = service.answer(self._engine, frame, fd, self._seconds, hang_up(conn))
        try:
            conn.sendall(protocol.encode_answer(answer.code, answer.body))
        except (OSError, VmlinkError):  # the latter: it is too long to be sent
            service.undo_unheard(self._engine, frame, answer.code, self._seconds)
        answer.log()


def passed_socket() -> socket.socket | None:
    """The socket that systemd made for us (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        os.set_inheritable(3, False)
        return socket.socket(fileno=3)
    return None


def listen(path: Path) -> socket.socket:
    """A socket of our own, mode 0600."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as e:
        raise VmlinkError(f"cannot listen at {path}: {e.strerror or e}") from e
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    return listener


def notify(state: str) -> None:
    """Tell the service manager, if there is one (sd_notify(3))."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s, suppress(OSError):
            s.sendto(state.encode(), address.replace("@", "\0", 1))


@contextmanager
def _queue_locked(queue: Path) -> Iterator[None]:
    """Clients write no DEL meanwhile; see cni/spec/protocol.py."""
    queue.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(queue / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def replay(engine: Engine, queue: Path, seconds: float) -> None:
    """Serve the DELs that came while nobody listened. One that fails for a reason that may pass
    stays for the next start; one that is itself wrong is logged and dropped."""
    for left in queue.glob("*.tmp"):
        left.unlink(missing_ok=True)
    for path in sorted(queue.glob("*.del")):
        try:
            frame = protocol.decode_payload(path.read_bytes())
        except VmlinkError as e:
            log.warning("%s is not a request and is removed: %s", path, e.msg)
            path.unlink()
            continue
        fd = descriptor(frame.env.get("CNI_NETNS", ""))
        answer = service.answer(engine, frame, fd, seconds, lambda: False)
        answer.log()
        if answer.code in (0, *_REQUEST_IS_WRONG):
            path.unlink()


def serve(run_dir: Path, config: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises VmlinkError when it cannot start."""
    run_dir = run_dir.absolute()
    run_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    _refuse_foreign(run_dir)
    lock = os.open(run_dir / "vmlinkd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise VmlinkError(f"another vmlinkd runs in {run_dir}; choose another --run-dir") from e
    store = Store(run_dir / "state")
    store.create()
    # Each deletion keeps a thread for the kernel's tail, long after its worker is free again.
    reaper = LinkDeleter(config.workers)
    owner = str(run_dir)

    def known(key: AttachmentKey) -> bool:
        is_known = pools.known(key) if key.pooled else store.load(key) is not None
        if key.kit and not is_known:
            pools.lost(key.kit)
        return is_known

    ovs = Database(config.ovs, owner, Collect(owner, known))
    node = Node(Namespace.own(), reaper, run_dir, ovs, Path(config.dan_dir))
    pools = Pools(run_dir / "pool", config.pools, node)
    if ovs.may_be_there():
        ovs.start()
    configs = PodConfigs(Pods(config.kubernetes), config.runtime_classes)
    engine = Engine(store, node, pools, configs)
    path = run_dir / "vmlinkd.sock"
    redirect.supported()  # the first try costs milliseconds that no ADD should pay
    patched = redirect.keep_patched()
    with _queue_locked(run_dir / "queue"):
        engine.recover()
        replay(engine, run_dir / "queue", config.deadline)
        passed = passed_socket()
        listener = passed or listen(path)
    door = Door(engine, config.deadline)
    pools.start(store)
    with _kubeovn(engine, configs, config) as more:
        _run([Workers(listener, config.workers, door.serve), *more])
    listener.close()
    if not passed:
        path.unlink(missing_ok=True)
    configs.pods.close()
    pools.close()
    ovs.close()
    reaper.close()
    os.close(patched)
    os.close(lock)


@contextmanager
def _kubeovn(engine: Engine, configs: PodConfigs, config: Settings) -> Iterator[list[Workers]]:
    """Who serves kube-ovn's plugin; nobody unless it is set."""
    path = config.kubeovn.listen
    if not path:
        if config.runtime_classes:
            configs.pods.start()
        yield []
        return
    from cni.daemon.kubeovn_server import Front  # h11 is of use for this alone

    front = Front(engine, configs, config.kubeovn, config.deadline)
    front.check()
    configs.pods.start()
    with listen(Path(path)) as listener:
        yield [Workers(listener, config.workers, front.serve, "kube-ovn", config.deadline)]
    Path(path).unlink(missing_ok=True)


def _refuse_foreign(directory: Path) -> None:
    status = directory.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise VmlinkError(
            f"{directory}: others may write there; give it to user {os.geteuid()}, mode 0711"
        )


def _run(servers: Sequence[Workers]) -> None:
    # A thread that waits for another may miss a signal that comes just before; a pipe keeps it.
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    faulthandler.enable()
    # What is loaded by now stays: the collector need not look at it on each pass.
    gc.freeze()
    for server in servers:
        server.start()
    notify("READY=1")
    log.info("vmlinkd %s is ready", __version__)
    os.read(told, 1)
    notify("STOPPING=1")
    for server in servers:
        server.stop()
    for server in servers:
        server.join()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vmlinkd", description="The node daemon of vmlink.")
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path("/run/vmlink"),
        help="socket, state and queue (default: %(default)s)",
    )
    parser.add_argument("--config", type=Path, help="settings, see conf/vmlinkd.yaml")
    parser.add_argument(
        "--ovs-db",
        metavar="REMOTE",
        help=f"Open vSwitch's database, before the settings' (default: {Ovs.db})",
    )
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(argv)
    try:
        config = settings.load(options.config)
        if options.ovs_db:
            config = settings.with_db(config, options.ovs_db)
        handler = logging.StreamHandler()
        handler.setFormatter(_JsonLines())
        logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
        serve(options.run_dir, config)
    except (VmlinkError, OSError) as e:
        print(f"vmlinkd: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
