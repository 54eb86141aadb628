"""The controller gives original limits back: by a grant that books them, then the agent lets go."""

from __future__ import annotations

from governed_node import GovernedNode
from wattline.drivers.grant_files import GpuReport, decode_report

pytest_plugins = ("virtual_fixtures",)

USABLE_W = 4000.0 * 0.98


def reported(node: GovernedNode, uuid: str) -> GpuReport:
    path = node.folder / "agent" / "report.json"
    report = decode_report(path.read_bytes(), node="n1", where=str(path))
    return next(entry for entry in report.gpus if entry.gpu == uuid)


def enforced_w(node: GovernedNode, uuid: str) -> float:
    return node.virtual.gpus.enforced_mw(uuid) / 1000.0


def test_an_original_limit_is_given_back_where_it_fits(governed_node: GovernedNode) -> None:
    node = governed_node
    gpu = node.uuids[5]
    node.start_controller()
    node.until(lambda: node.enforced_w() <= USABLE_W, "the budget enforced")
    node.until(lambda: node.state()["budget"]["booked_w"] <= USABLE_W, "the budget booked")

    refused = node.operate("restore", "n1", "--why", "a test")
    assert refused.returncode == 1
    assert "5600 W" in refused.stderr
    assert "does not fit 3,920 W" in refused.stderr

    given = node.operate("restore", gpu, "--by", "ann", "--why", "to be moved away")
    assert given.returncode == 0, given.stderr
    node.until(lambda: enforced_w(node, gpu) == 700.0, "the original limit")
    node.until(lambda: reported(node, gpu).facts.reason == "restored", "the agent has let go")
    assert node.enforced_w() <= USABLE_W
    sentence = {pool["name"]: pool["sentence"] for pool in node.state()["pools"]}["decode"]
    assert f"GPU {gpu} given back" in sentence
    assert "by ann" in sentence

    # A restart of the controller neither takes it back nor books it at less.
    node.end_controller()
    node.start_controller()
    first = node.state()["tick"]
    node.until(lambda: node.state()["tick"] > first + 10, "ten more ticks")
    assert enforced_w(node, gpu) == 700.0
    assert node.enforced_w() <= USABLE_W

    assert node.operate("resume", gpu, "--why", "it stays").returncode == 0
    node.until(lambda: enforced_w(node, gpu) < 700.0, "a planned limit again")
    audit = (node.folder / "controller" / "audit.jsonl").read_text()
    assert '"what": "restore"' in audit
    assert gpu in audit
