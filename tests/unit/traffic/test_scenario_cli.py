"""`wattline scenario`: list, show, check, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wattline.cli.main import main
from wattline.sim.scenario import builtin_names, builtin_text


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["wattline", "scenario", *words])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_list_names_each_scenario_with_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, monkeypatch, "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == builtin_names()
    code, out, _ = run(capsys, monkeypatch, "list", "--json")
    rows = json.loads(out)
    assert [row["name"] for row in rows] == builtin_names()
    assert all(0 < len(row["description"]) <= 120 for row in rows)


def test_what_show_prints_is_a_scenario(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, out, _ = run(capsys, monkeypatch, "show", "demo")
    assert (code, out) == (0, builtin_text("demo"))
    path = tmp_path / "mine.yaml"
    path.write_text(out)
    code, out, _ = run(capsys, monkeypatch, "check", str(path))
    assert code == 0
    assert "ok" in out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 1", "sede: 1", "did you mean seed"),
        ("gpu: H200", "gpu: H2000", "H2000"),
        ("model: Llama", "model: Lama", "Lama-3.3-70B"),
        ("at_s: 330, ", "at_s: 330, x: 1, ", "faults[0].x"),
        ("precision: fp8", "precision: bf16", "does not fit"),
    ],
)
def test_check_refuses_with_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    old: str,
    new: str,
    message: str,
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(builtin_text("demo").replace(old, new, 1))
    code, out, err = run(capsys, monkeypatch, "check", str(path))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_show_of_an_unknown_name_suggests_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run(capsys, monkeypatch, "show", "flash-crowds")
    assert code == 2
    assert "did you mean flash-crowd?" in err
