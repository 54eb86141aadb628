"""Build etcd and kube-apiserver from Go modules into a cache folder, for the contract tests.

`python tests/contract/kube/build_control_plane.py` prints the folder that has both. It takes
`KUBEBUILDER_ASSETS` where that has both, else builds once (about 5 minutes on 2 cores, 0.5 GB of
modules) into `.cache/kube/<versions>/`, and says what is missing where neither is possible.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

KUBERNETES = "v1.36.3"
STAGING = "v0.36.3"
ETCD = "v3.6.8"
BINARIES = ("etcd", "kube-apiserver")
HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[2] / ".cache" / "kube" / f"kubernetes-{KUBERNETES}-etcd-{ETCD}"
PARALLEL_JOBS = "2"
COMMAND_TIMEOUT_S = 3600.0


class CannotBuildError(Exception):
    """There is no way to a control plane here; the text says what is missing."""


def find_assets(env: Mapping[str, str]) -> Path | None:
    """Folder that has both binaries already: `KUBEBUILDER_ASSETS`, else our cache; None: none."""
    named = env.get("KUBEBUILDER_ASSETS")
    folders = [Path(named)] if named else []
    for folder in [*folders, CACHE]:
        if all(os.access(folder / name, os.X_OK) for name in BINARIES):
            return folder
    return None


def build(env: Mapping[str, str]) -> Path:
    """Folder with both binaries, built now if need be. One build at a time on a machine."""
    found = find_assets(env)
    if found:
        return found
    go = shutil.which("go", path=env.get("PATH"))
    if go is None:
        raise CannotBuildError(
            "no `go` on PATH and no etcd and kube-apiserver in KUBEBUILDER_ASSETS: install either"
        )
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        say("waiting for the lock on the cache folder")
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, make in (("etcd", build_etcd), ("kube-apiserver", build_api_server)):
            if not os.access(CACHE / name, os.X_OK):
                began = time.monotonic()
                say(f"building {name} (this happens once)")
                make(go, env)
                say(f"built {name} in {time.monotonic() - began:.0f} s")
    return CACHE


def build_etcd(go: str, env: Mapping[str, str]) -> None:
    """Etcd has a module of its own: together with others' it does not compile."""
    module = fresh_module("etcd")
    (module / "go.mod").write_text(
        f"module wattline.dev/etcd\n\ngo 1.24.0\n\nrequire go.etcd.io/etcd/server/v3 {ETCD}\n"
    )
    compile_into_cache(go, env, module, "etcd", "go.etcd.io/etcd/server/v3", "-s -w")


def build_api_server(go: str, env: Mapping[str, str]) -> None:
    """A module that requires k8s.io/kubernetes and replaces each of its staging modules."""
    module = fresh_module("kube-apiserver")
    go_mod = (HERE / "go.mod.in").read_text().replace("@KUBERNETES@", KUBERNETES)
    (module / "go.mod").write_text(go_mod)
    downloaded = run_go(
        go, env, module, "mod", "download", "-json", f"k8s.io/kubernetes@{KUBERNETES}"
    )
    edited = run_go(go, env, module, "mod", "edit", "-json", json.loads(downloaded)["GoMod"])
    staging = [
        replacement["Old"]["Path"]
        for replacement in json.loads(edited)["Replace"]
        if replacement["New"]["Path"].startswith("./staging/")
    ]
    replaces = "".join(f"replace {name} => {name} {STAGING}\n" for name in staging)
    (module / "go.mod").write_text(f"{go_mod}\n{replaces}")
    version = f"-X k8s.io/component-base/version.gitVersion={KUBERNETES}"
    package = "k8s.io/kubernetes/cmd/kube-apiserver"
    compile_into_cache(go, env, module, "kube-apiserver", package, f"-s -w {version}")


def fresh_module(name: str) -> Path:
    """An empty folder for a module, in the cache."""
    folder = CACHE / "modules" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def compile_into_cache(
    go: str, env: Mapping[str, str], module: Path, name: str, package: str, ldflags: str
) -> None:
    """Build `package` and put it into the cache whole or not at all."""
    partial = CACHE / f"{name}.partial"
    run_go(
        go, env, module, "build", "-mod=mod", "-trimpath", "-p", PARALLEL_JOBS,
        "-ldflags", ldflags, "-o", str(partial), package,
    )  # fmt: skip
    partial.replace(CACHE / name)


def run_go(go: str, env: Mapping[str, str], module: Path, *arguments: str) -> str:
    """Output of a go command; its messages go to our standard error as they come."""
    say(f"go {' '.join(arguments[:2])} in {module.name}")
    try:
        done = subprocess.run(
            [go, *arguments],
            cwd=module,
            env={**env, "CGO_ENABLED": "0", "GOWORK": "off"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=COMMAND_TIMEOUT_S,
        )
    except subprocess.SubprocessError as error:
        raise CannotBuildError(f"{error}; what go says is above") from error
    return done.stdout


def say(line: str) -> None:
    """One line of progress."""
    print(f"control plane: {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Print the folder; exit code 1 with the reason where there is none."""
    try:
        print(build(os.environ))
    except CannotBuildError as error:
        say(f"NOT BUILT: {error}; the contract tests that need it will be skipped")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
