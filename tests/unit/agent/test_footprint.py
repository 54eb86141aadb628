"""The agent stays small: what its command imports, in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import importlib, json, pkgutil, sys
import wattline.agent, wattline.drivers, wattline.grants
names = ["wattline.cli.main", "wattline.cli.agent", "wattline.cli.agent_run"]
for package in (wattline.agent, wattline.drivers, wattline.grants):
    found = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    names += [module.name for module in found]
for name in names:
    importlib.import_module(name)
json.dump({"imported": names, "modules": sorted(sys.modules)}, sys.stdout)
"""

FOREIGN = ("numpy", "pydantic", "rich", "scipy", "pandas", "jinja2", "prometheus_client")
LAZY = ("grpc", "lightkube", "httpx2", "pynvml", "yaml")
"""Libraries of the agent's own drivers: paid for by those who use them."""


def _modules(script: str) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_nothing_of_the_simulator_is_imported() -> None:
    found = _modules(SCRIPT)
    assert len(found["imported"]) > 40
    roots = {name.split(".")[0] for name in found["modules"]}
    assert not roots & set(FOREIGN)
    ours = {".".join(name.split(".")[:2]) for name in found["modules"] if name.startswith("wattl")}
    assert ours == {
        "wattline",
        "wattline.agent",
        "wattline.cli",
        "wattline.core",
        "wattline.drivers",
        "wattline.grants",
    }
    assert not roots & set(LAZY)


def test_a_question_to_a_running_agent_imports_next_to_nothing() -> None:
    script = (
        "import json, sys, wattline.cli.agent, wattline.agent.control, wattline.agent.status\n"
        'json.dump({"modules": sorted(sys.modules)}, sys.stdout)'
    )
    roots = {name.split(".")[0] for name in _modules(script)["modules"]}
    assert not roots & {*FOREIGN, *LAZY}


def test_a_node_without_a_kubelet_goes_without_grpc() -> None:
    script = (
        "import json, sys\nfrom pathlib import Path\n"
        "from wattline.agent.settings import AgentSettings\n"
        "from wattline.cli.agent_run import open_owners\n"
        "nowhere = Path('/nowhere')\n"
        "open_owners(AgentSettings(node='n', grants=nowhere, kubelet_socket=nowhere)).close()\n"
        'json.dump({"modules": sorted(sys.modules)}, sys.stdout)'
    )
    roots = {name.split(".")[0] for name in _modules(script)["modules"]}
    assert not roots & set(LAZY)
