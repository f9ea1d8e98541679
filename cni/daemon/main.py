"""vmlinkd: its command line, the order in which it is built, and its end."""

from __future__ import annotations

import argparse
import faulthandler
import fcntl
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from cni import __version__
from cni.attach.context import Node
from cni.attach.records import Store
from cni.config import settings
from cni.config.settings import Ovs, Settings
from cni.daemon import logs, queue
from cni.daemon.cni_server import CniServer
from cni.daemon.engine import Engine
from cni.daemon.pool import Pools
from cni.daemon.workers import Workers
from cni.errors import BadConfig, VmlinkError
from cni.kernel import redirect
from cni.kernel.link_deleter import LinkDeleter
from cni.kernel.netns import Namespace
from cni.kubeovn import open_pods
from cni.kubeovn.pod_network import PodNetworks
from cni.modes import MODES, rules
from cni.ovs import open_database
from cni.ovs.port_ops import Collect
from cni.spec.types import AttachmentKey

log = logging.getLogger("vmlink")

_BACKLOG = 4096  # connections that wait; net.core.somaxconn is usually as large


def main(argv: list[str] | None = None) -> int:
    """Run vmlinkd, or check its settings, and return the exit code."""
    options = _options(argv)
    try:
        config = _load(options.check_config or options.config, options.ovs_db)
        if options.check_config:
            print(settings.dump(config), end="")
        else:
            logs.set_up(config.log_level)
            serve(options.run_dir.absolute(), config)
    except (VmlinkError, OSError) as e:
        logs.last_words(f"vmlinkd: {e}")
        return 1
    return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vmlinkd", description="The node daemon of vmlink.")
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path("/run/vmlink"),
        help="socket, state and queue (default: %(default)s)",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="see conf/vmlinkd.yaml")
    parser.add_argument(
        "--check-config",
        type=Path,
        metavar="FILE",
        help="print the settings that vmlinkd would run with, or what is wrong with them, and exit",
    )
    parser.add_argument(
        "--ovs-db",
        metavar="REMOTE",
        help=f"Open vSwitch's database, instead of the settings' (default: {Ovs.db})",
    )
    parser.add_argument("--version", action="version", version=__version__)
    return parser.parse_args(argv)


def _load(path: Path | None, ovs_db: str | None) -> Settings:
    """Read and check all settings, before anything is started or written."""
    config = settings.load(path, MODES, [mode for mode, each in rules().items() if each.poolable])
    if ovs_db:
        config = settings.with_db(config, ovs_db)
    if config.kubeovn.listen:
        from cni.daemon.kubeovn_server import check_network  # loads h11, which few nodes need

        check_network(config.kubeovn, rules(), f"{path}: kubeovn.network")
    if _watches_pods(config) and not config.kubernetes.configured:
        raise BadConfig(
            f"{path}: kubernetes.kubeconfig: required for runtime_classes and kubeovn.listen; name "
            "a file, or run vmlinkd in a pod with a service account"
        )
    return config


def _watches_pods(config: Settings) -> bool:
    return bool(config.kubeovn.listen or config.runtime_classes)


def serve(run_dir: Path, config: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises VmlinkError or OSError when it cannot start.

    What was started ends in reverse order, however far the start has come.
    """
    with ExitStack() as stack:
        _lock(run_dir, stack)
        store = Store(run_dir / "state")
        store.create()
        node = _node(run_dir, config, stack)
        pools = Pools(run_dir / "pool", config.pools, node, MODES)
        node.ovs.on_view = pools.wake
        stack.callback(pools.close)
        node.ovs.enqueue(Collect(node.ovs.owner, partial(_is_known, store, pools)))
        if node.ovs.may_be_there():
            node.ovs.start()
        pods = open_pods(config.kubernetes)
        stack.callback(pods.close)
        networks = PodNetworks(rules(), pods, config.runtime_classes)
        engine = Engine(store, node, MODES, pools, networks)
        with queue.locked(run_dir / "queue"):
            engine.recover()
            queue.replay(engine, run_dir / "queue", config.deadline)
            listener = _listener(run_dir / "vmlinkd.sock", stack)
        pools.start(store)
        if _watches_pods(config):
            pods.start()
        server = CniServer(engine, config.deadline)
        workers = [Workers(listener, config.workers, server.serve)]
        if config.kubeovn.listen:
            workers.append(_kubeovn_workers(engine, networks, config, stack))
        _run(workers, stack)


def _lock(run_dir: Path, stack: ExitStack) -> None:
    """Make the run directory ours alone. Raises VmlinkError."""
    run_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    status = run_dir.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise VmlinkError(
            f"{run_dir}: others may write there; give it to user {os.geteuid()}, mode 0711"
        )
    fd = os.open(run_dir / "vmlinkd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise VmlinkError(f"another vmlinkd runs in {run_dir}; choose another --run-dir") from e


def _node(run_dir: Path, config: Settings, stack: ExitStack) -> Node:
    # Not closed before the process ends: a thread that is inside a pod must find its way back.
    host = Namespace.own()
    redirect.supported()  # cached; the first call takes milliseconds that no ADD should pay
    stack.callback(os.close, redirect.keep_patched())
    # A deletion keeps a thread busy long after its worker is free again.
    deleter = LinkDeleter(config.workers)
    stack.callback(deleter.close)
    ovs = open_database(config.ovs, owner=str(run_dir))
    stack.callback(ovs.close)
    return Node(host, deleter, run_dir, ovs, Path(config.dan_dir))


def _is_known(store: Store, pools: Pools, key: AttachmentKey) -> bool:
    """Whether a port has a record, or is a prepared one of a pool's."""
    is_known = pools.known(key) if key.pooled else store.load(key) is not None
    if key.prepared and not is_known:
        pools.lost(key.prepared)
    return is_known


def _kubeovn_workers(
    engine: Engine, networks: PodNetworks, config: Settings, stack: ExitStack
) -> Workers:
    from cni.daemon.kubeovn_server import KubeOvnServer  # loads h11, which few nodes need

    listener = _listen(Path(config.kubeovn.listen), stack)
    server = KubeOvnServer(engine, networks, config.kubeovn, config.deadline)
    # At the end kube-ovn's daemon, which has the passed requests, may take longer than we wait.
    return Workers(listener, config.workers, server.serve, "kube-ovn", config.deadline)


def _listener(path: Path, stack: ExitStack) -> socket.socket:
    """Return the socket that systemd has passed (sd_listen_fds(3)), else one of our own."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        os.set_inheritable(3, False)
        return stack.enter_context(socket.socket(fileno=3))
    return _listen(path, stack)


def _listen(path: Path, stack: ExitStack) -> socket.socket:
    """Listen at `path`, mode 0600. Raises VmlinkError."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as e:
        raise VmlinkError(f"cannot listen at {path}: {e.strerror or e}") from e
    finally:
        os.umask(before)
    stack.callback(path.unlink, missing_ok=True)
    listener.listen(_BACKLOG)
    return listener


def _run(servers: Sequence[Workers], stack: ExitStack) -> None:
    """Serve until a signal comes; `stack` then finishes what is under way."""
    signalled = _signals(stack)
    faulthandler.enable()
    gc.freeze()  # what is loaded by now stays: no need to look at it in each collection
    for server in servers:
        stack.callback(server.join)
    for server in servers:
        stack.callback(server.stop)  # all of them stop before the first is waited for
        server.start()
    notify("READY=1")
    log.info("vmlinkd %s is ready", __version__)
    os.read(signalled, 1)
    notify("STOPPING=1")


def _signals(stack: ExitStack) -> int:
    """Return a pipe that can be read once SIGTERM or SIGINT has come.

    A pipe keeps a signal that comes just before a wait, which a lock would miss.
    """
    signalled, wakeup = os.pipe()
    for fd in (signalled, wakeup):
        stack.callback(os.close, fd)
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    stack.callback(signal.set_wakeup_fd, -1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return signalled


def notify(state: str) -> None:
    """Tell the service manager, if there is one (sd_notify(3))."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s, suppress(OSError):
            s.sendto(state.encode(), address.replace("@", "\0", 1))


if __name__ == "__main__":
    sys.exit(main())
