"""Pods and owners from files: changes are seen, damage changes nothing."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.drivers.pods import OwnerMethod, Pod, PodName, SourceError
from wattline.drivers.pods_file import OwnersFile, PodsFile
from wattline.drivers.trusted_files import replace_file

LIMIT = "dynamo.nvidia.com/gpu-power-limit"
WEB = {"namespace": "default", "name": "web", "uid": "u1", "annotations": {LIMIT: "300"}}
OWNERS = {"gpus": {"GPU-a": [{"namespace": "default", "name": "web"}], "GPU-b": []}}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def write(path: Path, document: Any) -> None:
    replace_file(path, json.dumps(document).encode(), durable=False)


def test_pods_as_the_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "pods.json"
    plain = {"namespace": "default", "name": "plain", "uid": "u2"}
    done = {**WEB, "name": "done", "uid": "u3", "phase": "Succeeded"}
    write(path, {"pods": [WEB, plain, done], "kind": "whatever"})
    source = PodsFile(path)
    source.start()
    source.stop()
    assert source.pods() == (
        Pod("default", "web", "u1", "300"),
        Pod("default", "plain", "u2", None),
        Pod("default", "done", "u3", "300", finished=True),
    )
    assert source.failures() == 0
    assert source.age_s() is not None
    assert source.trouble() is None


def test_changes_are_told(tmp_path: Path) -> None:
    path = tmp_path / "pods.json"
    write(path, {"pods": []})
    changed = threading.Event()
    source = PodsFile(path, changed.set, poll_s=0.005)
    source.start()
    try:
        assert changed.is_set()
        for name in ("a", "b", "c"):
            changed.clear()
            write(path, {"pods": [{**WEB, "name": name}]})
            assert changed.wait(20.0)
            assert [pod.name for pod in source.pods()] == [name]
    finally:
        source.stop()


def test_a_file_that_stays_the_same_tells_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pods.json"
    write(path, {"pods": [WEB]})
    changes = []
    source = PodsFile(path, lambda: changes.append(source.age_s()), poll_s=0.002)
    source.start()
    time.sleep(0.1)  # some fifty looks
    source.stop()
    assert len(changes) == 1


def test_another_file_of_the_same_size_and_time_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "owners.json"
    write(path, {"gpus": {"GPU-a": [{"namespace": "default", "name": "web"}]}})
    source = OwnersFile(path)
    assert set(source.owners().pods) == {"GPU-a"}
    before = path.stat()
    write(path, {"gpus": {"GPU-b": [{"namespace": "default", "name": "web"}]}})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert set(source.owners().pods) == {"GPU-b"}


def test_no_file_is_not_no_pods(tmp_path: Path) -> None:
    path = tmp_path / "pods.json"
    source = PodsFile(path, poll_s=0.005)
    source.start()
    try:
        with pytest.raises(SourceError, match="No such file"):
            source.pods()
        assert source.age_s() is None
        write(path, {"pods": [WEB]})
        wait_until(lambda: source.trouble() is None)
        assert len(source.pods()) == 1
    finally:
        source.stop()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b'{"pods": [{"namespace": "def',
        b"[]",
        b'{"pods": {}}',
        b'{"pods": [7]}',
        b'{"pods": [{"namespace": "d", "name": "w"}]}',
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({"pods": [WEB, WEB]}).encode(),
        json.dumps({"pods": [{**WEB, "annotations": {LIMIT: 300}}]}).encode(),
        None,
    ],
    ids=[
        "empty",
        "torn",
        "list",
        "object",
        "number",
        "uid",
        "utf8",
        "deep",
        "twice",
        "int",
        "gone",
    ],
)
def test_damage_leaves_the_newest_good_pods(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "pods.json"
    write(path, {"pods": [WEB]})
    source = PodsFile(path, poll_s=0.005)
    source.start()
    try:
        before = source.pods()
        if damage is None:
            path.unlink()
        else:
            replace_file(path, damage, durable=False)
        wait_until(lambda: source.failures() > 0)
        assert source.pods() == before
        trouble = source.trouble()
        assert trouble is not None
        assert "\n" not in trouble
        write(path, {"pods": []})
        wait_until(lambda: source.trouble() is None)
        assert source.pods() == ()
    finally:
        source.stop()


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pods.json"
    replace_file(path, json.dumps({"pods": []}).encode(), durable=False, mode=0o666)
    source = PodsFile(path)
    source.start()
    source.stop()
    with pytest.raises(SourceError, match="writable by its owner only"):
        source.pods()


def test_owners_as_the_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "owners.json"
    write(path, OWNERS)
    source = OwnersFile(path)
    owners = source.owners()
    assert owners.method is OwnerMethod.FILES
    assert owners.pods == {"GPU-a": frozenset({PodName("default", "web")})}
    assert source.owners() is owners
    write(path, {"gpus": {}})
    assert source.owners().pods == {}
    source.close()


def test_owners_that_cannot_be_read_are_an_error_until_they_can(tmp_path: Path) -> None:
    path = tmp_path / "owners.json"
    source = OwnersFile(path)
    for damage in (None, b"{", b'{"gpus": []}', b'{"gpus": {"GPU-a": [{}]}}', b'{"gpus":{"g":1}}'):
        if damage is not None:
            replace_file(path, damage, durable=False)
        with pytest.raises(SourceError):
            source.owners()
    write(path, OWNERS)
    assert len(source.owners().pods) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["pods", "gpus", "namespace", "name", "uid", "annotations", "phase", LIMIT]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, document: Any
) -> None:
    path = tmp_path_factory.mktemp("any") / "file.json"
    write(path, document)
    pods = PodsFile(path)
    pods.start()
    pods.stop()
    for read in (pods.pods, OwnersFile(path).owners):
        try:
            read()
        except SourceError as error:
            said = str(error)
            assert "\n" not in said
