"""Watching a node's pods on an API server that fails, forgets old versions and is slow."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from bench.testbed.kube_apiserver import FakeApiServer
from bench.testbed.slowness import SLOWNESS
from cni.cancel import Cancel
from cni.config.settings import Kubernetes
from cni.errors import ClientGone, DeadlineExceeded, NotReady, TryAgain
from cni.kubeovn import open_pods
from cni.kubeovn.pod_annotations import MODE
from cni.kubeovn.pods import Pod, Pods

WEB = ("shop", "web")
READY = {"ovn.kubernetes.io/allocated": "true"}
PATIENCE = 20 * SLOWNESS


@pytest.fixture
def api() -> Iterator[FakeApiServer]:
    with FakeApiServer() as made:
        yield made


@pytest.fixture
def pods(api: FakeApiServer, tmp_path: Path) -> Iterator[Pods]:
    made = open_pods(Kubernetes("node1", str(api.kubeconfig(tmp_path / "kubeconfig"))))
    yield made
    made.close()


def unallocated(pod: Pod) -> str:
    return "" if READY.items() <= pod.annotations.items() else "is not allocated"


@pytest.fixture
def later(pods: Pods) -> Iterator[Callable[..., Future[Pod]]]:
    """A function that starts to wait for the pod in another thread."""
    with ThreadPoolExecutor() as threads:

        def wait(uid: str = "", seconds: float = PATIENCE) -> Future[Pod]:
            looked = threading.Event()

            def lacking(pod: Pod) -> str:
                looked.set()
                return unallocated(pod)

            future = threads.submit(pods.wait, WEB, uid, lacking, Cancel(seconds))
            looked.wait(PATIENCE)
            return future

        yield wait


def test_only_what_is_needed_is_kept(api: FakeApiServer, pods: Pods) -> None:
    given = {**READY, MODE: "tc", "kubectl.kubernetes.io/last-applied": "x" * 1000, "a": "b"}
    api.put(*WEB, uid="u1", annotations=given, runtime_class="kata")
    api.put("shop", "elsewhere", node="node2")
    found = pods.wait(WEB, "u1", unallocated, Cancel(PATIENCE))
    assert found == Pod(*WEB, "u1", {**READY, MODE: "tc"}, "kata")
    with pytest.raises(DeadlineExceeded, match=r"shop/elsewhere: is not among .* node node1"):
        pods.wait(("shop", "elsewhere"), "", unallocated, Cancel(0.1))


def test_a_static_pod_is_known_by_kubelets_uid(api: FakeApiServer, pods: Pods) -> None:
    api.put(*WEB, uid="mirrors", annotations={**READY, "kubernetes.io/config.mirror": "kubelets"})
    assert pods.wait(WEB, "kubelets", unallocated, Cancel(PATIENCE)).uid == "kubelets"


def test_a_server_with_tls(tmp_path: Path) -> None:
    files = (tmp_path / "cert", tmp_path / "key")
    request = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test".split()
    request += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(files[0])]
    subprocess.run([*request, "-keyout", str(files[1])], check=True, capture_output=True)
    with FakeApiServer(tls=files) as api:
        pods = open_pods(Kubernetes("node1", str(api.kubeconfig(tmp_path / "kubeconfig"))))
        api.put(*WEB)
        pods.wait(WEB, "", lambda _: "", Cancel(PATIENCE))
        api.put(*WEB, annotations=READY)
        pods.wait(WEB, "", unallocated, Cancel(PATIENCE))
        pods.close()


def test_annotations_that_come_late(api: FakeApiServer, later: Callable[..., Future[Pod]]) -> None:
    api.put(*WEB)
    waiting = later()
    assert not waiting.done()
    api.put(*WEB, annotations=READY)
    assert waiting.result(PATIENCE).annotations == READY


def test_annotations_that_never_come(api: FakeApiServer, pods: Pods) -> None:
    api.put(*WEB)
    pods.wait(WEB, "", lambda _: "", Cancel(PATIENCE))
    with pytest.raises(DeadlineExceeded, match=r"^pod shop/web: is not allocated$"):
        pods.wait(WEB, "", unallocated, Cancel(0.1))


def test_a_pod_that_is_deleted_is_not_waited_for(
    api: FakeApiServer, later: Callable[..., Future[Pod]]
) -> None:
    api.put(*WEB)
    waiting = later()
    api.delete(*WEB)
    with pytest.raises(TryAgain, match=r"shop/web was deleted while it was waited for"):
        waiting.result(PATIENCE)


def test_a_namesake_is_not_believed(
    api: FakeApiServer, pods: Pods, later: Callable[..., Future[Pod]]
) -> None:
    api.put(*WEB, uid="old", annotations=READY)
    pods.wait(WEB, "old", unallocated, Cancel(PATIENCE))
    with pytest.raises(DeadlineExceeded, match=r"uid new, found its namesake old"):
        pods.wait(WEB, "new", unallocated, Cancel(0.1))
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(pods.wait, WEB, "new", unallocated, Cancel(PATIENCE))
        api.put(*WEB, uid="new")
        api.put(*WEB, annotations={**READY, MODE: "tap"})
        assert waiting.result(PATIENCE).annotations[MODE] == "tap"


@pytest.mark.parametrize("forgotten", [False, True], ids=["resumed", "listed anew"])
def test_a_watch_that_is_cut(
    api: FakeApiServer, pods: Pods, later: Callable[..., Future[Pod]], forgotten: bool
) -> None:
    """Whatever happened meanwhile is known afterwards, including a pod that was deleted."""
    api.put(*WEB)
    api.put("shop", "gone")
    waiting = later()
    with api.cut():
        api.put(*WEB, annotations=READY)
        api.delete("shop", "gone")
        if forgotten:
            api.forget()
    assert waiting.result(PATIENCE).annotations == READY
    with pytest.raises(DeadlineExceeded, match=r"shop/gone: is not among"):
        pods.wait(("shop", "gone"), "", unallocated, Cancel(0.1))
    lists = [line for line in api.requests if "watch=1" not in line]
    assert len(lists) == 1 + forgotten


def away(pods: Pods) -> None:
    """Wait until the cut connection has been noticed."""
    end = time.monotonic() + PATIENCE
    with suppress(DeadlineExceeded):
        while time.monotonic() < end:
            pods.wait(WEB, "", unallocated, Cancel(0.05))


def test_what_is_known_from_before_a_cut(api: FakeApiServer, pods: Pods) -> None:
    """A pod that was known before is trusted by its uid; a name may belong to another pod now."""
    api.put(*WEB, uid="u1", annotations=READY)
    pods.wait(WEB, "", unallocated, Cancel(PATIENCE))
    with api.cut():
        away(pods)
        assert pods.wait(WEB, "u1", unallocated, Cancel(PATIENCE)).uid == "u1"
        with pytest.raises(DeadlineExceeded, match=r"may have changed .*; the API server: "):
            pods.wait(WEB, "", unallocated, Cancel(0.1))


def test_a_bookmark_spares_the_list(api: FakeApiServer, pods: Pods) -> None:
    api.put(*WEB, annotations=READY)
    pods.wait(WEB, "", unallocated, Cancel(PATIENCE))
    api.put("shop", "elsewhere", node="node2")  # on another node: this watch gets no event
    api.bookmark()
    api.end_watches()
    api.forget()
    api.watches(2)
    api.put("shop", "last")
    pods.wait(("shop", "last"), "", lambda _: "", Cancel(PATIENCE))
    assert sum("watch=1" not in line for line in api.requests) == 1


def test_a_server_that_answers_with_errors(api: FakeApiServer, pods: Pods) -> None:
    api.status = 403
    with pytest.raises(DeadlineExceeded, match=r"the API server: .*403"):
        pods.wait(WEB, "u1", unallocated, Cancel(0.5))
    api.status = 0
    api.put(*WEB, uid="u1", annotations=READY)
    pods.wait(WEB, "u1", unallocated, Cancel(PATIENCE))
    pods.ready()


def test_no_server_and_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeApiServer() as api:
        config = api.kubeconfig(tmp_path / "kubeconfig")
    lonely = open_pods(Kubernetes("node1", str(config)))
    try:
        with pytest.raises(NotReady, match=r"^kubernetes: the API server: ConnectError"):
            lonely.ready()
        with pytest.raises(DeadlineExceeded, match=r"the API server: ConnectError"):
            lonely.wait(WEB, "", unallocated, Cancel(0.5))
    finally:
        lonely.close()
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(TryAgain, match=r"kubernetes.kubeconfig: there are no credentials"):
        open_pods(Kubernetes()).wait(WEB, "", unallocated, Cancel(PATIENCE))


def test_a_caller_who_hangs_up_is_not_served_on(api: FakeApiServer, pods: Pods) -> None:
    with pytest.raises(ClientGone):
        pods.wait(WEB, "", unallocated, Cancel(PATIENCE, gone=lambda: True))
