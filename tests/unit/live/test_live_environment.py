"""The builder of Dynamo's environment, with an interpreter that only pretends to install."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import pytest

from wattline.core.errors import InputError, WattlineError
from wattline.live import environment
from wattline.live.environment import Environment

# `-m venv --clear FOLDER` copies itself there; `pip install` notes what it is given; the model
# script makes the file that it is asked for.
PRETENDS = """#!/bin/sh
case "$*" in
  "-m venv --clear "*) mkdir -p "$4/bin" "$4/lib/python3.11/site-packages"; cp "$0" "$4/bin/python" ;;
  *" pip "*) echo "$*" >> "$(dirname "$0")/../installs"; {pip} ;;
  *model_dir.py*) mkdir -p "$2"; touch "$2/tokenizer.json" ;;
  *) exit 9 ;;
esac
"""  # noqa: E501


def pretender(folder: Path, pip: str = "true") -> str:
    path = folder / "pretender"
    path.write_text(PRETENDS.replace("{pip}", pip))
    path.chmod(0o755)
    return str(path)


def test_parts_are_installed_once_and_at_pinned_versions(tmp_path: Path) -> None:
    home, python = tmp_path / "dynamo", pretender(tmp_path)
    lines: list[str] = []
    assert environment.find(home=home) is None
    base = environment.build(home=home, python=python, say=lines.append)
    assert base == Environment(home) == environment.find(home=home)
    assert base.python == home / "bin" / "python"
    assert (base.model_dir / "tokenizer.json").exists()
    assert environment.find(planner=True, home=home) is None
    assert len((home / "installs").read_text().splitlines()) == 1
    environment.build(planner=True, home=home, python=python, say=lines.append)
    environment.build(planner=True, home=home, python="/no/such/python", say=lines.append)
    assert len((home / "installs").read_text().splitlines()) == 2
    assert all("--no-deps" in line for line in (home / "installs").read_text().splitlines())
    stub = home / "lib" / "python3.11" / "site-packages" / "aisimulate_core"
    assert sorted(path.name for path in stub.iterdir()) == ["__init__.py", "_native.py", "sdk.py"]
    for path in stub.iterdir():
        compile(path.read_text(), path.name, "exec")
    assert any("base" in line for line in lines)
    assert "ready" in lines[-1]


def test_a_folder_of_other_versions_is_brought_up_to_date(tmp_path: Path) -> None:
    home, python = tmp_path / "dynamo", pretender(tmp_path)
    environment.build(home=home, python=python, say=_mute)
    for content in ("", "[]", json.dumps({"base": "0123456789abcdef"})):
        (home / ".ready").write_text(content)
        assert environment.find(home=home) is None
        environment.build(home=home, python=python, say=_mute)
        assert environment.find(home=home) is not None


def test_every_package_has_one_version() -> None:
    pins = environment._pins("base") + environment._pins("planner")
    lines = [line for line in pins.splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 for line in lines)
    names = [line.partition("==")[0].lower().replace("_", "-") for line in lines]
    assert len(set(names)) == len(names)
    assert {"ai-dynamo", "ai-dynamo-runtime", "tokenizers", "numpy", "pydantic"} <= set(names)


@pytest.mark.parametrize(
    ("pip", "words"),
    [
        ('echo "ERROR: No matching distribution found for x==1" >&2; exit 1', "No matching"),
        ('echo "Killed" >&2; exit 137', "Killed"),
        ("exit 1", "no output"),
    ],
)
def test_a_failed_step_is_said_in_one_line_and_nothing_counts_as_built(
    pip: str, words: str, tmp_path: Path
) -> None:
    home = tmp_path / "dynamo"
    with pytest.raises(WattlineError, match=words) as failed:
        environment.build(home=home, python=pretender(tmp_path, pip), say=_mute)
    assert "\n" not in str(failed.value)
    assert environment.find(home=home) is None
    with pytest.raises(InputError, match=r"python -m wattline\.live\.environment --planner"):
        environment.require(planner=True, home=home)
    with pytest.raises(WattlineError, match="No such file"):
        environment.build(home=tmp_path / "other", python="/no/such/python", say=_mute)


def test_a_second_builder_waits_for_the_first(tmp_path: Path) -> None:
    home, python = tmp_path / "dynamo", pretender(tmp_path)
    lines: list[str] = []
    waits = threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        waits.set()

    with (tmp_path / "dynamo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(
            target=environment.build, kwargs={"home": home, "python": python, "say": say}
        )
        second.start()
        assert waits.wait(30)
        assert "waiting" in lines[0]
        assert environment.find(home=home) is None
    second.join(30)
    assert environment.find(home=home) is not None


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(environment.HOME_VARIABLE, str(tmp_path))
    assert environment.default_home() == tmp_path
    monkeypatch.delenv(environment.HOME_VARIABLE)
    assert environment.default_home().name == "dynamo-1.6.1"


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert environment.main(["--everything"]) == 2
    assert "usage" in capsys.readouterr().err


def _mute(line: str) -> None:
    assert line
