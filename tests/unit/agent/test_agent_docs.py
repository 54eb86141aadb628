"""Pages and manifests say what the code does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from wattline.agent.loop import _GIVE_BACK_S
from wattline.agent.reference import settings_table
from wattline.agent.settings import SETTINGS, load_settings
from wattline.agent.snapshot import Reason
from wattline.cli.agent import agent
from wattline.drivers.grant_files import GpuFacts, NodeReport
from wattline.grants.messages import Report

ROOT = Path(__file__).parents[3]
REFERENCE = (ROOT / "docs" / "reference" / "agent.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "guides" / "node-agent.md").read_text(encoding="utf-8")
PERMISSIONS = (ROOT / "docs" / "reference" / "agent-permissions.md").read_text(encoding="utf-8")
DEPLOY = ROOT / "deploy" / "agent"


def _manifest() -> dict[str, Any]:
    text = (DEPLOY / "daemonset.yaml").read_text(encoding="utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def test_the_table_of_settings_is_rendered_from_the_settings() -> None:
    assert f"-->\n\n{settings_table()}\n<!-- end" in REFERENCE


def test_every_command_is_in_the_reference() -> None:
    for name in agent.list_commands(click.Context(agent)):
        assert f"`wattline agent {name}" in REFERENCE


@pytest.mark.parametrize("shown", [NodeReport, Report, GpuFacts], ids=lambda cls: cls.__name__)
def test_every_key_of_the_report_is_described(shown: type) -> None:
    for field in dataclasses.fields(shown):
        if field.name != "gpus":
            assert f"`{field.name}`" in REFERENCE
    assert "`gpus[]`" in REFERENCE


def test_every_reason_is_explained_to_operators() -> None:
    for reason in Reason:
        assert f"`{reason.value}`" in GUIDE


def test_commands_of_the_guide_exist() -> None:
    names = set(agent.list_commands(click.Context(agent)))
    used = set(re.findall(r"wattline agent ([a-z]+)", GUIDE + PERMISSIONS + REFERENCE))
    assert used <= names


def test_links_lead_somewhere() -> None:
    for page, text in (
        (ROOT / "docs" / "reference" / "agent.md", REFERENCE),
        (ROOT / "docs" / "guides" / "node-agent.md", GUIDE),
        (ROOT / "docs" / "reference" / "agent-permissions.md", PERMISSIONS),
    ):
        for target in re.findall(r"\]\(([^)#]+)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_manifest_asks_for_no_more_than_it_says() -> None:
    pod = _manifest()["DaemonSet"]["spec"]["template"]["spec"]
    assert not {"hostPID", "hostNetwork", "hostIPC", "shareProcessNamespace"} & set(pod)
    assert "initContainers" not in pod
    (container,) = pod["containers"]
    context = container["securityContext"]
    assert context["privileged"] is False
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["SYS_ADMIN"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    writable = [mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["state"]
    assert pod["terminationGracePeriodSeconds"] > 2 * _GIVE_BACK_S


def test_every_path_of_the_manifest_is_in_the_permissions() -> None:
    pod = _manifest()["DaemonSet"]["spec"]["template"]["spec"]
    for volume in pod["volumes"]:
        if "hostPath" in volume:
            assert f"`{volume['hostPath']['path']}`" in PERMISSIONS
    assert "SYS_ADMIN" in PERMISSIONS


def _settings(text: str, folder: Path, env: dict[str, str]) -> Any:
    path = folder / "agent.yaml"
    path.write_text(text, encoding="utf-8")
    settings, warnings, _ = load_settings(path, env, {})
    assert warnings == ()
    return settings


def test_the_manifests_settings_are_good_and_lead_to_its_mounts(tmp_path: Path) -> None:
    manifest = _manifest()
    text = manifest["ConfigMap"]["data"]["agent.yaml"]
    settings = _settings(text, tmp_path, {"NODE_NAME": "n1"})
    pod = manifest["DaemonSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(settings.state_dir) in mounts
    assert str(settings.kubelet_socket.parent) in mounts
    assert str(settings.token_file.parent) in mounts
    assert container["args"][:3] == ["agent", "run", "--config"]
    assert str(Path(container["args"][3]).parent) in mounts
    (port,) = container["ports"]
    assert settings.listen.endswith(f":{port['containerPort']}")
    for name in re.findall(r"^# ([a-z_]+):", text, re.MULTILINE):
        assert name in SETTINGS


def test_the_manifest_belongs_to_the_roles() -> None:
    daemonset = _manifest()["DaemonSet"]
    account = daemonset["spec"]["template"]["spec"]["serviceAccountName"]
    for name in ("rbac.yaml", "rbac-namespaced.yaml"):
        documents = list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))
        accounts = [item["metadata"] for item in documents if item["kind"] == "ServiceAccount"]
        assert accounts == [{"name": account, "namespace": daemonset["metadata"]["namespace"]}]


def test_the_example_of_one_machine_is_good(tmp_path: Path) -> None:
    text = (DEPLOY / "agent.yaml").read_text(encoding="utf-8")
    assert _settings(text, tmp_path, {}).node == "gpu-node-1"
