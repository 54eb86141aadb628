"""A real etcd and kube-apiserver on loopback, and a TCP proxy that can cut them off."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import yaml

ADMIN_TOKEN = "admin-token"
AGENT_TOKEN = "agent-token"
STRANGER_TOKEN = "stranger-token"
NAMESPACED_TOKEN = "namespaced-token"
AGENT_USER = "system:serviceaccount:wattline-system:wattline-agent"
NAMESPACED_USER = "system:serviceaccount:wattline-system:namespaced-agent"
SERVICE_ACCOUNTS = "system:serviceaccounts,system:serviceaccounts:wattline-system"
START_TIMEOUT_S = 60.0
Json = dict[str, Any]


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Poll until it holds; AssertionError after a generous time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class TcpProxy:
    """Forwards one port to another that may change; can swallow all bytes or refuse to listen."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self._flowing = threading.Event()
        self._flowing.set()
        self._sockets: list[socket.socket] = []
        self._swallowed: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def swallow(self) -> None:
        """From now on nothing passes, though connections stay open and new ones are accepted."""
        self._flowing.clear()

    def heal(self) -> None:
        """New connections pass again; what was swallowed is lost with its connections."""
        self.drop()
        self._flowing.set()

    def drop(self) -> None:
        """Cut all connections."""
        for end in list(self._sockets):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()
        for end in self._swallowed:
            end.close()
        self._swallowed.clear()

    def close(self) -> None:
        self._listener.close()
        self._flowing.set()
        self.drop()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        if not self._flowing.is_set():
            self._swallowed.append(client)
            return
        try:
            server = socket.create_connection(("127.0.0.1", self.target_port), timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        self._sockets += [client, server]
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._flowing.is_set():
                    sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class ControlPlane:
    """etcd and kube-apiserver, with an administrator, the agent's user and one without rights."""

    def __init__(self, assets: Path, folder: Path) -> None:
        self._assets = assets
        self._folder = folder
        self._etcd_port = free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.port = 0
        self.audit_log = folder / "audit.log"
        self._write_files()

    def start(self) -> None:
        self._start_etcd()
        self.start_api_server()

    def stop(self) -> None:
        for name in list(self._processes):
            self._kill(name)

    def start_api_server(self, *, wait: bool = True) -> None:
        """On a new port: an old server may keep its own for seconds."""
        self.port = free_port()
        folder = self._folder
        self._spawn(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--cert-dir={folder}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            "--service-account-issuer=https://wattline.test",
            f"--service-account-key-file={folder / 'sa.key'}",
            f"--service-account-signing-key-file={folder / 'sa.key'}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--disable-admission-plugins=ServiceAccount",
            f"--audit-policy-file={folder / 'audit.yaml'}",
            f"--audit-log-path={self.audit_log}",
        )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self._processes["kube-apiserver"].poll() is None, self.log("kube-apiserver")
            try:
                return bool(self.request("GET", "/readyz").status_code == 200)
            except httpx2.HTTPError:
                return False

        wait_until(ready, "kube-apiserver is ready", START_TIMEOUT_S)

    def kill_api_server(self) -> None:
        self._kill("kube-apiserver")

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")[-2000:]

    def request(self, method: str, path: str, body: Json | None = None, **headers: str) -> Any:
        """One request as the administrator, straight to the server."""
        with httpx2.Client(verify=False, trust_env=False, timeout=10.0) as client:
            return client.request(
                method,
                f"https://127.0.0.1:{self.port}{path}",
                content=None if body is None else json.dumps(body),
                headers={
                    "Authorization": f"Bearer {ADMIN_TOKEN}",
                    "Content-Type": "application/json",
                    **headers,
                },
            )

    def apply(self, manifest: str) -> None:
        """Create or update every object of a manifest, by server-side apply."""
        for item in yaml.safe_load_all(manifest):
            group = item["apiVersion"]
            root = f"/apis/{group}" if "/" in group else f"/api/{group}"
            namespace = item["metadata"].get("namespace")
            kind = item["kind"].lower() + "s"
            within = f"/namespaces/{namespace}" if namespace else ""
            path = f"{root}{within}/{kind}/{item['metadata']['name']}?fieldManager=test&force=true"
            answer = self.request(
                "PATCH", path, item, **{"Content-Type": "application/apply-patch+yaml"}
            )
            assert answer.status_code in (200, 201), answer.text

    def kubeconfig(self, port: int, token: str = AGENT_TOKEN) -> Path:
        """Kubeconfig of a user, for the server behind `port` on loopback."""
        path = self._folder / f"kubeconfig-{port}-{token}"
        path.write_text(
            yaml.safe_dump(
                {
                    "current-context": "test",
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                    "clusters": [
                        {
                            "name": "test",
                            "cluster": {
                                "server": f"https://127.0.0.1:{port}",
                                "certificate-authority": str(self._folder / "apiserver.crt"),
                            },
                        }
                    ],
                    "users": [{"name": "test", "user": {"token": token}}],
                }
            )
        )
        return path

    def agent_requests(self) -> list[tuple[str, str]]:
        """Verb and URI of every request that the agent's user has made, in order."""
        found = []
        for line in self.audit_log.read_text().splitlines() if self.audit_log.exists() else []:
            entry = json.loads(line)
            if entry["user"]["username"] == AGENT_USER and entry["stage"] == "RequestReceived":
                found.append((entry["verb"], entry["requestURI"]))
        return found

    def compact_etcd(self) -> None:
        """Drop all history, so that no watch can start in the past."""
        url = f"http://127.0.0.1:{self._etcd_port}/v3/kv"
        with httpx2.Client(trust_env=False, timeout=10.0) as client:
            revision = client.post(f"{url}/range", json={"key": "AA=="}).json()["header"][
                "revision"
            ]
            answer = client.post(f"{url}/compaction", json={"revision": revision, "physical": True})
            assert answer.status_code == 200, answer.text

    def _start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{free_port()}"
        self._spawn(
            "etcd",
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        )

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [self._assets / name, *arguments], stdout=log, stderr=log, cwd=self._folder
            )

    def _kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def _write_files(self) -> None:
        (self._folder / "tokens.csv").write_text(
            f'{ADMIN_TOKEN},admin,1,"system:masters"\n'
            f'{AGENT_TOKEN},{AGENT_USER},2,"{SERVICE_ACCOUNTS}"\n'
            f'{NAMESPACED_TOKEN},{NAMESPACED_USER},3,"{SERVICE_ACCOUNTS}"\n'
            f"{STRANGER_TOKEN},stranger,4\n"
        )
        (self._folder / "audit.yaml").write_text(
            json.dumps(
                {
                    "apiVersion": "audit.k8s.io/v1",
                    "kind": "Policy",
                    "rules": [{"level": "Metadata", "users": [AGENT_USER]}, {"level": "None"}],
                }
            )
        )
        subprocess.run(
            ["openssl", "genrsa", "-out", self._folder / "sa.key", "2048"],
            check=True,
            capture_output=True,
        )


class NodePods:
    """Pods of one made-up node, as the scheduler, a user and the kubelet would write them."""

    def __init__(self, plane: ControlPlane, node: str, namespace: str = "default") -> None:
        self._plane = plane
        self.node = node
        self._root = f"/api/v1/namespaces/{namespace}/pods"
        self.namespace = namespace

    def create(
        self, name: str, annotations: Json | None = None, gpus: int = 0, *, host_pid: bool = False
    ) -> Json:
        container: Json = {"name": "main", "image": "none"}
        if gpus:
            container["resources"] = {"limits": {"nvidia.com/gpu": gpus}}
        pod = {
            "metadata": {"name": name, "annotations": annotations or {}},
            "spec": {"nodeName": self.node, "containers": [container], "hostPID": host_pid},
        }
        return self._call("POST", self._root, pod)

    def annotate(self, name: str, annotations: Json) -> Json:
        body = {"metadata": {"annotations": annotations}}
        return self._patch(f"{self._root}/{name}", body)

    def set_status(self, name: str, **status: str) -> Json:
        return self._patch(f"{self._root}/{name}/status", {"status": status})

    def delete(self, name: str) -> Json:
        return self._call("DELETE", f"{self._root}/{name}", {"gracePeriodSeconds": 0})

    def clear(self) -> None:
        """Take away all that is left, so that other tests may use the names."""
        mine = self._call("GET", f"{self._root}?fieldSelector=spec.nodeName={self.node}")
        for item in mine["items"]:
            self.delete(item["metadata"]["name"])

    def _patch(self, path: str, body: Json) -> Json:
        return self._call("PATCH", path, body, **{"Content-Type": "application/merge-patch+json"})

    def _call(self, method: str, path: str, body: Json | None = None, **headers: str) -> Json:
        answer = self._plane.request(method, path, body, **headers)
        assert answer.status_code in (200, 201), answer.text
        document: Json = answer.json()
        return document


@contextlib.contextmanager
def running(assets: Path, folder: Path) -> Iterator[ControlPlane]:
    plane = ControlPlane(assets, folder)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()
