"""The observer of a campaign misses no change and counts none twice, from its very start."""

from __future__ import annotations

from pathlib import Path

import pytest

from wattline.virtual import observer
from wattline.virtual.node import VirtualNode
from wattline.virtual.observer import NodeView, Observer


def test_a_change_while_the_observer_starts_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VirtualNode(tmp_path / "node", ("h100",), settle_s=0.0) as node:
        (uuid,) = node.gpus.uuids()

        class Changed(NodeView):
            """A node whose limit changes as soon as it has been looked at first."""

            def __init__(self, name: str, path: Path) -> None:
                super().__init__(name, path)
                node.gpus.write_limit(uuid, 300.0)

        monkeypatch.setattr(observer, "NodeView", Changed)
        watching = Observer({"n1": node.gpus_file})
        watching.start()
        watching.stop()
        (change,) = watching.changes
        assert (change.before_mw, change.enforced_mw) == (700_000, 300_000)
        assert watching.start_mw == {uuid: 700_000}
        assert change.at_s >= watching.start_s
