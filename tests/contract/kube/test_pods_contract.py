"""Pods from a real API server: what is seen, with the agent's permissions, and through failures."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest
from control_plane import AGENT_TOKEN, ControlPlane, NodePods, TcpProxy, wait_until

from wattline.drivers.kube.api import connect
from wattline.drivers.kube.pods import KubePods
from wattline.drivers.pods import LIMIT_ANNOTATION, SourceError


class Watching:
    """A pod source on a node, and what it has told."""

    def __init__(
        self,
        plane: ControlPlane,
        proxy: TcpProxy,
        node: str,
        *,
        token: str = AGENT_TOKEN,
        namespace: str | None = None,
        renew_s: tuple[float, float] = (300.0, 600.0),
        silence_s: float = 150.0,
    ) -> None:
        self.changes = 0
        self.source = KubePods(
            connect(plane.kubeconfig(proxy.port, token)),
            node,
            self._changed,
            namespace=namespace,
            seed=1,
            renew_s=renew_s,
            silence_s=silence_s,
        )

    def _changed(self) -> None:
        self.changes += 1

    def names(self) -> list[str]:
        try:
            return sorted(pod.name for pod in self.source.pods())
        except SourceError:
            return ["none yet"]

    def limits(self) -> dict[str, str | None]:
        return {pod.name: pod.limit for pod in self.source.pods()}

    def until_names(self, *names: str) -> None:
        def same() -> bool:
            return self.names() == sorted(names)

        wait_until(same, f"{sorted(names)}; {self.names()}, {self.source.trouble()}", 60.0)


@contextlib.contextmanager
def watching(plane: ControlPlane, proxy: TcpProxy, node: str, **more: object) -> Iterator[Watching]:
    watching = Watching(plane, proxy, node, **more)  # type: ignore[arg-type]
    watching.source.start()
    try:
        yield watching
    finally:
        watching.source.stop()


def test_pods_come_change_finish_and_go(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods
) -> None:
    node.create("before", {LIMIT_ANNOTATION: "300"})
    with watching(plane, proxy, node.node) as seen:
        seen.until_names("before")
        created = node.create("worker", {LIMIT_ANNOTATION: "480"}, gpus=2)
        node.create("bystander")
        seen.until_names("before", "bystander", "worker")
        assert seen.limits() == {"before": "300", "bystander": None, "worker": "480"}
        [worker] = [pod for pod in seen.source.pods() if pod.name == "worker"]
        assert worker.uid == created["metadata"]["uid"]
        assert worker.asks_gpu
        assert not worker.acknowledged

        node.annotate("worker", {LIMIT_ANNOTATION: "350"})
        wait_until(lambda: seen.limits()["worker"] == "350", "the new annotation")
        node.annotate("worker", {LIMIT_ANNOTATION: None})
        wait_until(lambda: seen.limits()["worker"] is None, "the annotation's end")

        node.set_status("worker", phase="Running", startTime="2026-01-01T00:00:00Z")
        wait_until(
            lambda: any(pod.acknowledged for pod in seen.source.pods()), "the kubelet's word"
        )
        node.set_status("worker", phase="Succeeded")
        wait_until(lambda: any(pod.finished for pod in seen.source.pods()), "the end")
        node.delete("worker")
        seen.until_names("before", "bystander")
        assert seen.source.failures() == 0


def test_other_nodes_pods_are_not_seen(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods
) -> None:
    other = NodePods(plane, f"{node.node}-other")
    other.create(f"elsewhere-{node.node}")
    with watching(plane, proxy, node.node) as seen:
        seen.until_names()
        changes = seen.changes
        other.create(f"later-{node.node}")
        node.create(f"here-{node.node}")
        seen.until_names(f"here-{node.node}")
        assert seen.changes == changes + 1


def test_a_name_that_is_used_again_has_another_uid(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods
) -> None:
    name = f"again-{node.node}"
    node.create(name)
    with watching(plane, proxy, node.node) as seen:
        seen.until_names(name)
        [before] = seen.source.pods()
        node.delete(name)
        node.create(name)
        wait_until(
            lambda: [pod.uid != before.uid for pod in seen.source.pods()] == [True], "the new UID"
        )
        assert seen.names() == [name]


def test_one_namespace_needs_only_a_role(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods, namespaced_token: str
) -> None:
    there = NodePods(plane, node.node, "dynamo")
    there.create(f"in-{node.node}")
    node.create(f"out-{node.node}")
    with watching(plane, proxy, node.node, token=namespaced_token, namespace="dynamo") as seen:
        seen.until_names(f"in-{node.node}")
    with watching(plane, proxy, node.node, token=namespaced_token) as seen:
        wait_until(lambda: seen.source.failures() > 0, "the refusal")
        with pytest.raises(SourceError, match=r"permission is missing.*at the cluster scope"):
            seen.source.pods()


def test_a_missing_permission_is_named(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods
) -> None:
    with watching(plane, proxy, node.node, token="stranger-token") as seen:
        wait_until(lambda: seen.source.failures() > 0, "the refusal")
        with pytest.raises(SourceError) as caught:
            seen.source.pods()
        said = str(caught.value)
        assert 'cannot list resource "pods"' in said
        assert "deploy/agent/rbac.yaml" in said
        assert "\n" not in said
        assert seen.source.age_s() is None


def test_credentials_that_are_not_accepted_are_named(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods
) -> None:
    with watching(plane, proxy, node.node, token="no-such-token") as seen:
        wait_until(lambda: seen.source.failures() > 0, "the refusal")
        with pytest.raises(SourceError, match="401: the credentials are not accepted"):
            seen.source.pods()


def test_in_peace_there_is_one_list_and_one_watch(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods
) -> None:
    def asked() -> list[str]:
        return [verb for verb, uri in plane.agent_requests() if node.node in uri]

    with watching(plane, proxy, node.node) as seen:
        seen.until_names()
        wait_until(lambda: len(asked()) == 2, "the list and the watch in the audit log")
        for n in range(20):
            node.create(f"peace-{n}-{node.node}")
        wait_until(lambda: len(seen.names()) == 20, "all pods")
        time.sleep(2.0)  # long enough for any poll that would be fast enough to be of use
        assert asked() == ["list", "watch"]


def test_renewals_of_the_watch_lose_nothing(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods
) -> None:
    with watching(plane, proxy, node.node, renew_s=(1.0, 1.0)) as seen:
        seen.until_names()
        names = [f"renew-{n}-{node.node}" for n in range(60)]
        for name in names:
            node.create(name)
            time.sleep(0.05)
        seen.until_names(*names)
        verbs = [verb for verb, uri in plane.agent_requests() if node.node in uri]
        assert verbs.count("list") == 1
        assert verbs.count("watch") >= 3


def test_hundreds_of_changes_are_seen_to_the_last(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods
) -> None:
    with watching(plane, proxy, node.node) as seen:
        seen.until_names()
        kept = []
        for n in range(120):
            name = f"soak-{n}-{node.node}"
            node.create(name, {LIMIT_ANNOTATION: str(200 + n)}, gpus=1)
            if n % 2:
                node.annotate(name, {LIMIT_ANNOTATION: str(400 + n)})
            if n % 3 == 0:
                node.delete(name)
            else:
                kept.append((name, str(400 + n if n % 2 else 200 + n)))
            if n == 60:
                proxy.drop()
        seen.until_names(*(name for name, _ in kept))
        wait_until(lambda: seen.limits() == dict(kept), "the newest annotations")
        assert seen.names() == sorted(name for name, _ in kept)


def test_a_partition_keeps_the_pods_and_shows_their_age(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods
) -> None:
    node.create(f"a-{node.node}")
    with watching(plane, proxy, node.node, silence_s=3.0) as seen:
        seen.until_names(f"a-{node.node}")
        proxy.swallow()
        node.create(f"b-{node.node}")
        wait_until(lambda: (seen.source.age_s() or 0.0) > 4.0, "an age beyond the silence")
        wait_until(lambda: seen.source.trouble() is not None, "the trouble")
        assert seen.names() == [f"a-{node.node}"]
        proxy.heal()
        seen.until_names(f"a-{node.node}", f"b-{node.node}")
        wait_until(lambda: (seen.source.age_s() or 9.0) < 2.0, "a small age")
        wait_until(lambda: seen.source.trouble() is None, "peace")


def restart(plane: ControlPlane, proxy: TcpProxy, meanwhile: Callable[[], object]) -> None:
    """kill -9 of the API server; another on the same etcd takes over behind the same address."""
    plane.kill_api_server()
    meanwhile()
    plane.start_api_server()
    proxy.target_port = plane.port


def test_a_restart_of_the_api_server_is_survived(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods
) -> None:
    node.create(f"a-{node.node}")
    with watching(plane, proxy, node.node) as seen:
        seen.until_names(f"a-{node.node}")
        restart(plane, proxy, lambda: wait_until(lambda: seen.source.failures() > 1, "failures"))
        assert seen.names() == [f"a-{node.node}"]
        node.create(f"b-{node.node}")
        seen.until_names(f"a-{node.node}", f"b-{node.node}")


def test_expiry_while_away_is_survived(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods
) -> None:
    """What was created and deleted while we were cut off, and then compacted away, is seen."""
    for name in ("stays", "goes"):
        node.create(f"{name}-{node.node}")
    with watching(plane, proxy, node.node) as seen:
        seen.until_names(f"goes-{node.node}", f"stays-{node.node}")
        proxy.target_port = 1  # nobody listens there
        proxy.drop()
        wait_until(lambda: seen.source.failures() > 0, "the cut")
        node.delete(f"goes-{node.node}")
        node.create(f"new-{node.node}")
        restart(plane, proxy, plane.compact_etcd)
        seen.until_names(f"new-{node.node}", f"stays-{node.node}")
        uris = [uri for verb, uri in plane.agent_requests() if node.node in uri and verb == "list"]
        assert len(uris) == 2, "it was the expiry that made it list again"
        assert "resourceVersionMatch=NotOlderThan" in uris[1]


def test_a_server_that_is_not_ready_yet_is_waited_for(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods
) -> None:
    """Right after its start a server refuses connections, then answers 403 for want of roles."""
    node.create(f"a-{node.node}")
    plane.kill_api_server()
    with watching(plane, proxy, node.node) as seen:
        wait_until(lambda: seen.source.failures() > 0, "no server")
        with pytest.raises(SourceError):
            seen.source.pods()
        plane.start_api_server(wait=False)
        proxy.target_port = plane.port
        seen.until_names(f"a-{node.node}")
        plane.wait_ready()


def test_stopping_ends_an_open_watch_at_once(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods
) -> None:
    with watching(plane, proxy, node.node) as seen:
        seen.until_names()
        wait_until(lambda: seen.source.trouble() is None, "the watch")
        seen.source.stop()
        assert seen.source.failures() == 0
