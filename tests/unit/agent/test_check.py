"""`check`: every finding with a remedy, and nothing written."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from face_fixtures import TOKEN

from wattline.agent import check as checks
from wattline.agent import takeover
from wattline.agent.check import Level, Row, Sources, check, has_capability
from wattline.agent.settings import AgentSettings
from wattline.agent.snapshot import Mode
from wattline.core.errors import InputError
from wattline.drivers.gpu.device import GpuFault
from wattline.drivers.gpu.simulated import SimulatedDriver, SimulatedNode
from wattline.drivers.pods import OwnerMethod, Ownership, Pod, PodName, SourceError


class Owners:
    def __init__(self, answer: Ownership | SourceError) -> None:
        self.answer = answer
        self.closed = False

    def owners(self) -> Ownership:
        if isinstance(self.answer, SourceError):
            raise self.answer
        return self.answer

    def close(self) -> None:
        self.closed = True


class Pods:
    def __init__(self, *answers: Sequence[Pod] | SourceError) -> None:
        self.answers = list(answers)
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> None:
        self.calls.append("stop")

    def pods(self) -> Sequence[Pod]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, SourceError):
            raise answer
        return answer

    def age_s(self) -> float | None:
        return None

    def failures(self) -> int:
        return 0

    def trouble(self) -> str | None:
        return None


class Place:
    """A node to look at, in good order unless a test changes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node = SimulatedNode(["NVIDIA H200"])
        self.uuid = self.node.gpus[0].uuid
        self.owners = Owners(
            Ownership(
                OwnerMethod.POD_RESOURCES, {self.uuid: frozenset({PodName("team", "worker")})}
            )
        )
        self.pods: Pods | None = None
        self.claims: Callable[[], int | None] | None = None
        self.driver: Callable[[], SimulatedDriver] = lambda: SimulatedDriver(self.node)
        (folder / "state").mkdir(mode=0o700)
        (folder / "proc").mkdir()
        self.values: dict[str, Any] = {
            "node": "n1",
            "driver": "simulated",
            "state_dir": folder / "state",
            "grants": folder / "grants",
            "listen": "127.0.0.1:0",
            "proc_root": folder / "proc",
            "dynamo_state": folder / "managed_gpus.json",
        }

    def grants(self, document: Mapping[str, object] | None = None) -> None:
        (self.folder / "grants").mkdir(exist_ok=True)
        content = {"protocol": 1, "node": "n1", "epoch": 3, "grants": []} | dict(document or {})
        (self.folder / "grants" / "n1.json").write_text(json.dumps(content), encoding="utf-8")

    def rows(self, **changes: Any) -> list[Row]:
        pods = self.pods
        sources = Sources(
            driver=self.driver,
            owners=lambda: self.owners,
            pods=None if pods is None else lambda: pods,
            claims=self.claims,
        )
        return check(AgentSettings(**{**self.values, **changes}), sources)

    def about(self, about: str, **changes: Any) -> list[Row]:
        return [row for row in self.rows(**changes) if row.about == about]

    def one(self, about: str, **changes: Any) -> Row:
        (row,) = self.about(about, **changes)
        return row


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    # A port on which certainly nobody listens: no metrics of a rival.
    monkeypatch.setattr(takeover, "_serves_metrics", lambda port: False)
    return Place(tmp_path)


def test_a_good_node_is_good_and_nothing_is_written(place: Place) -> None:
    place.grants()
    before = sorted((path, path.stat().st_mtime_ns) for path in place.folder.rglob("*"))
    rows = place.rows()
    assert [row for row in rows if row.level is not Level.OK] == []
    assert sorted((path, path.stat().st_mtime_ns) for path in place.folder.rglob("*")) == before
    assert place.node.gpus[0].writes == []
    assert place.owners.closed
    assert [row.about for row in rows] == [
        "state directory",
        "grants",
        "listen",
        "gpu 0",
        "permission",
        "owners",
        "dynamo power agent",
        "clock",
    ]


def test_every_finding_that_is_not_good_has_a_remedy(place: Place) -> None:
    place.owners = Owners(SourceError("no answer"))
    place.node.clamp(place.uuid, 300.0)
    with place.node.changing(place.uuid) as gpu:
        gpu.persistence = False
        gpu.mig_uuids = ("MIG-1",)
    (place.folder / "managed_gpus.json").write_text("{", encoding="utf-8")
    bad = [row for row in place.rows(brake_w=50.0) if row.level is not Level.OK]
    assert len(bad) == 7
    assert all(row.remedy for row in bad)
    for row in place.rows():
        assert "\n" not in row.found + row.remedy


def test_state_directory(place: Place) -> None:
    state = place.folder / "state"
    os.chmod(state, 0o777)
    assert place.one("state directory").level is Level.FAIL
    os.chmod(state, 0o700)
    missing = place.one("state directory", state_dir=state / "a" / "b")
    assert (missing.level, "`run` makes it" in missing.found) == (Level.OK, True)
    file = state / "file"
    file.touch()
    assert place.one("state directory", state_dir=file).level is Level.FAIL
    assert not (state / "a").exists()


def test_a_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LEAST_FREE_BYTES", 1 << 80)
    assert "bytes free" in place.one("state directory").found


def test_grants(place: Place) -> None:
    assert place.one("grants").level is Level.WARN
    place.grants({"node": "n2"})
    row = place.one("grants")
    assert row.level is Level.FAIL
    assert "another node" in row.found
    place.grants()
    assert "0 grants, epoch 3" in place.one("grants").found
    assert place.about("grants", mode=Mode.ANNOTATIONS, safe_default_w=500.0) == []


def test_files(place: Place) -> None:
    token = place.folder / "token"
    assert place.one("token", token_file=token).level is Level.FAIL
    token.write_text(TOKEN, encoding="utf-8")
    assert place.one("token", token_file=token).level is Level.OK
    brake = place.folder / "brake"
    assert place.one("brake file", brake_file=brake).level is Level.OK
    brake.touch()
    assert place.one("brake file", brake_file=brake).level is Level.WARN
    nowhere = place.folder / "none" / "brake"
    assert place.one("brake file", brake_file=nowhere).level is Level.FAIL


def test_an_address_in_use(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        row = place.one("listen", listen=f"127.0.0.1:{port}")
    assert row.level is Level.WARN
    assert "in use" in row.found


def test_no_library_and_no_gpus(place: Place) -> None:
    def missing() -> SimulatedDriver:
        raise InputError("nvml", "no module pynvml", "install the extra")

    place.driver = missing
    assert place.one("gpu library").level is Level.FAIL
    assert place.one("owners").level is Level.OK
    place.driver = lambda: SimulatedDriver(SimulatedNode([]))
    assert place.one("gpus").level is Level.FAIL


def test_gpus_that_the_library_leaves_out(place: Place) -> None:
    place.node = SimulatedNode(["NVIDIA H200"] * 2)
    place.node.fail(place.node.gpus[1].uuid, GpuFault.LOST)
    row = place.one("gpus")
    assert (row.level, row.found) == (Level.FAIL, "GPU 1 is lost")
    assert place.one("gpu 0").level is Level.OK


def test_gpus(place: Place) -> None:
    place.node.fail(place.uuid, GpuFault.LOST, "enforced_w")
    (row,) = place.about("gpu 0")
    assert row.level is Level.FAIL
    place.node.fail(place.uuid, None, "enforced_w")
    place.node.clamp(place.uuid, 300.0)
    found, held = place.about("gpu 0")
    assert "enforced 300 W, requested 700 W" in found.found
    assert held.level is Level.WARN
    assert "BMC" in held.remedy


def test_the_capability_is_read_and_not_tried(place: Place, tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t0000000000200000\n", encoding="ascii")
    assert has_capability(21, status)
    assert not has_capability(20, status)
    status.write_text("Name:\tx\n", encoding="ascii")
    assert not has_capability(21, status)
    row = place.one("permission", driver="nvml")
    assert (row.level is Level.OK) is has_capability(21)


def test_owners(place: Place) -> None:
    place.owners = Owners(SourceError("kubelet PodResources: UNAVAILABLE"))
    assert place.one("owners").level is Level.WARN
    place.pods = Pods([])
    row = place.one("owners", mode=Mode.ANNOTATIONS, safe_default_w=500.0, pods="kube")
    assert row.level is Level.FAIL
    told = Ownership(OwnerMethod.PROCESSES, {}, ("device 7: gone",), {"GPU-a": "no permission"})
    place.owners = Owners(told)
    fallback, unresolved, untold = place.about("owners")
    assert "no socket" in fallback.found
    assert unresolved.found == "device 7: gone"
    assert untold.found == "GPU GPU-a: no permission"


def test_pods_are_waited_for_and_the_watch_is_ended(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotated = Pod("team", "worker", "uid", "480")
    place.pods = Pods(SourceError("not listed yet"), [annotated, Pod("a", "b", "c", None)])
    row = place.one("pods")
    assert "2 on n1, 1 annotated" in row.found
    assert place.pods.calls == ["start", "stop"]
    monkeypatch.setattr(checks, "PODS_S", 0.0)
    place.pods = Pods(SourceError("403: pods is forbidden"))
    row = place.one("pods")
    assert (row.level, row.found) == (Level.FAIL, "403: pods is forbidden")
    assert "rbac.yaml" in row.remedy
    assert place.pods.calls == ["start", "stop"]


def test_claimed_devices(place: Place) -> None:
    def refused() -> int:
        raise SourceError("resourceslices: a permission is missing")

    place.claims = lambda: 8
    assert place.one("claimed devices").found == "8 in this node's ResourceSlices"
    place.claims = lambda: None
    assert place.one("claimed devices").level is Level.OK
    place.claims = refused
    assert place.one("claimed devices").level is Level.WARN


def test_a_rival(place: Place) -> None:
    place.pods = Pods([Pod("dynamo", "power-agent-abcde", "uid", None)])
    assert place.one("dynamo power agent").level is Level.FAIL
    assert place.one("dynamo power agent", take_over=True).level is Level.WARN


def test_what_is_missing_in_the_settings_is_one_finding_among_others(place: Place) -> None:
    row = place.one("settings", grants=None)
    assert row.level is Level.FAIL
    assert "--grants PATH" in row.found
    assert place.one("gpu 0", grants=None).level is Level.OK
