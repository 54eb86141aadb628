"""The builder of the control plane, without building: what it takes, and what it says."""

from __future__ import annotations

from pathlib import Path

import build_control_plane
import pytest
from build_control_plane import BINARIES, CannotBuildError, build, find_assets, main


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setattr(build_control_plane, "CACHE", cache)
    return cache


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def fake_go(folder: Path, script: str) -> dict[str, str]:
    go = put(folder, "go") / "go"
    go.write_text(f"#!/bin/sh\n{script}\n")
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_assets_that_are_there_are_taken(tmp_path: Path) -> None:
    assets = put(tmp_path / "assets", *BINARIES)
    assert build({"KUBEBUILDER_ASSETS": str(assets), "PATH": ""}) == assets


def test_assets_that_are_not_whole_are_not_taken(tmp_path: Path, cache: Path) -> None:
    env = {"KUBEBUILDER_ASSETS": str(put(tmp_path / "assets", "etcd"))}
    assert find_assets(env) is None
    assert find_assets({}) is None
    assert find_assets(env | {"x": str(put(cache, *BINARIES))}) == cache


def test_without_go_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    assert main() == 1
    said = capsys.readouterr().err
    assert "NOT BUILT: no `go` on PATH" in said
    assert "will be skipped" in said


def test_a_build_that_fails_leaves_no_binary(tmp_path: Path, cache: Path) -> None:
    env = fake_go(tmp_path / "bin", "exit 3")
    with pytest.raises(CannotBuildError, match="exit status 3"):
        build(env)
    assert find_assets({}) is None


def test_what_was_built_is_kept(tmp_path: Path, cache: Path) -> None:
    """A go that downloads nothing: it answers the questions and writes what it is asked for."""
    (tmp_path / "kubernetes.mod").write_text("module k8s.io/kubernetes\n")
    old = '{"Path": "k8s.io/api"}'
    env = fake_go(
        tmp_path / "bin",
        f"""echo "$@" >> {tmp_path}/calls
case "$1-$2" in
  mod-download) echo '{{"GoMod": "{tmp_path}/kubernetes.mod"}}' ;;
  mod-edit) echo '{{"Replace": [{{"Old": {old}, "New": {{"Path": "./staging/src/api"}}}}]}}' ;;
  build-*) while [ "$1" != -o ]; do shift; done; cp /bin/true "$2" ;;
esac""",
    )
    assert build(env) == cache == find_assets({})
    go_mod = (cache / "modules" / "kube-apiserver" / "go.mod").read_text()
    assert "replace k8s.io/api => k8s.io/api v0." in go_mod
    calls = (tmp_path / "calls").read_text()
    assert build(env) == cache
    assert (tmp_path / "calls").read_text() == calls
