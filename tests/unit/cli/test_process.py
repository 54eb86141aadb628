"""What only a process shows: signals, closed pipes, full devices, exit codes, start-up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_fixtures import TINY

COMMAND = (sys.executable, "-m", "wattline")


def start(*arguments: object, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # As if nothing above us had switched Ctrl-C off, as shells do for jobs in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def members(group: int) -> list[int]:
    """Processes of a process group that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:  # ended meanwhile
                continue
            if int(of) == group and state not in "ZX":
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize(
    ("arguments", "number", "code"),
    [
        (("simulate",), signal.SIGINT, 130),
        (("compare", "--jobs", "2"), signal.SIGINT, 130),
        (("compare", "--jobs", "2"), signal.SIGTERM, 143),
    ],
)
def test_a_signal_ends_everything_and_leaves_nothing(
    tmp_path: Path, arguments: tuple[str, ...], number: signal.Signals, code: int
) -> None:
    scenario = tmp_path / "long.yaml"
    scenario.write_text(TINY.replace("duration_s: 15", "duration_s: 20000"))
    process = start(*arguments, scenario, "--out", tmp_path / "run")
    deadline = time.monotonic() + 60
    wanted = 4 if "compare" in arguments else 1  # parent, fork server, two workers
    while not (len(members(process.pid)) >= wanted and _work(tmp_path)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    if number is signal.SIGINT:
        assert err.strip() == "wattline: interrupted"
    while members(process.pid):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.05)
    assert [entry.name for entry in tmp_path.iterdir()] == ["long.yaml"]


SWALLOWED = """
import signal, sys
import click
from wattline.cli import main

def serialise():
    try:
        signal.raise_signal(signal.{name})
    except KeyboardInterrupt as error:
        raise ValueError("cannot be written") from error

main.cli = click.Command("wattline", callback=serialise)
sys.argv[1:] = []
main.main()
"""


@pytest.mark.parametrize(
    ("name", "code", "said"), [("SIGINT", 130, "wattline: interrupted\n"), ("SIGTERM", 143, "")]
)
def test_an_interrupt_in_a_library_that_makes_an_error_of_it(
    name: str, code: int, said: str
) -> None:
    """As pydantic does where the signal comes while it writes JSON."""
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED.format(name=name)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stderr) == (code, said)


def _work(folder: Path) -> bool:
    return any(entry.name.startswith(".run.") for entry in folder.iterdir())


def test_a_reader_that_goes_away_is_no_error_to_report() -> None:
    process = start("models", "cap-response", "--json")
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert err == ""


def test_a_full_device_is_reported_once() -> None:
    with open("/dev/full", "w") as full:
        process = start("scenario", "list", stdout=full.fileno())
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == "wattline: No space left on device\n"


def test_a_terminal_without_the_signs_gets_others(tmp_path: Path) -> None:
    scenario = tmp_path / "tiny.yaml"
    scenario.write_text(TINY)
    done = subprocess.run(
        [*COMMAND, "simulate", scenario],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b"Draw / budget  ??" in done.stdout


def test_plan_reads_a_pipe(recorded: Path) -> None:
    snapshot = subprocess.run(
        [*COMMAND, "explain", recorded, "--tick", "5", "--snapshot"],
        capture_output=True,
        check=True,
    ).stdout
    planned = subprocess.run(
        [*COMMAND, "plan", "/dev/stdin"], input=snapshot, capture_output=True, check=True
    ).stdout
    assert planned.startswith(b"budget 840 W")


def test_help_does_not_pay_for_the_simulator() -> None:
    code = (
        "import sys; from wattline.cli.main import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "sys.exit('numpy' in sys.modules or 'pydantic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Start here:\n" in done.stdout
