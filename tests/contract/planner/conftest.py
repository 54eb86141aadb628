"""One planner per test process; skipped with the reason where it cannot be had."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from planner_stack import Stack, find_etcd, running

from wattline.live import environment


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    etcd, home = find_etcd(os.environ), environment.find(planner=True)
    missing = []
    if home is None:
        missing.append("Dynamo's planner (`python -m wattline.live.environment --planner`)")
    if etcd is None:
        missing.append("etcd (on PATH, or `python tests/contract/kube/build_control_plane.py`)")
    if missing or home is None or etcd is None:
        reason = f"the real planner needs {' and '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with running(home, etcd, tmp_path_factory.mktemp("planner")) as stack:
        yield stack
