"""The supervisor with children that only pretend to be workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from wattline.core.errors import InputError, WattlineError
from wattline.live.processes import Adopted, boot_ticks
from wattline.live.supervisor import Supervisor, WorkerPhase, WorkerPool, WorkerView

TOY = str(Path(__file__).with_name("toy_worker.py"))
WITHIN_S = 30.0


def pool(
    name: str,
    manner: str = "ready",
    *more: str,
    start_limit_s: float = WITHIN_S,
    drain_limit_s: float = WITHIN_S,
) -> WorkerPool:
    argv = (sys.executable, TOY, "{metrics_port}", manner, *more)
    return WorkerPool(
        name=name, argv=argv, start_limit_s=start_limit_s, drain_limit_s=drain_limit_s
    )


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    """Makes supervisors of one folder; everything that they left running is killed."""
    made: list[Supervisor] = []

    def make(*pools: WorkerPool) -> Supervisor:
        made.append(Supervisor(pools, tmp_path / "workers"))
        return made[-1]

    yield make
    for supervisor in reversed(made):
        supervisor.stop(limit_s=0.0)


def wait_for(supervisor: Supervisor, replica: str, phase: WorkerPhase) -> WorkerView:
    end_s = time.monotonic() + WITHIN_S
    while time.monotonic() < end_s:
        view = view_of(supervisor, replica)
        if view.phase is phase:
            return view
        time.sleep(0.02)
    raise AssertionError(f"{replica} is {view.phase}, not {phase}: {view.why}")


def view_of(supervisor: Supervisor, replica: str) -> WorkerView:
    return next(view for view in supervisor.replicas() if view.replica == replica)


def test_a_worker_starts_serves_and_drains(supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise(pool("decode", "ready", "0.3"))
    replica = supervisor.start("decode", ("GPU-a", "GPU-b"))
    first = view_of(supervisor, replica)
    assert (first.phase, first.pool, first.gpus) == (
        WorkerPhase.STARTING,
        "decode",
        ("GPU-a", "GPU-b"),
    )
    ready = wait_for(supervisor, replica, WorkerPhase.READY)
    assert ready.metrics_url.startswith("http://127.0.0.1:")
    assert not ready.adopted
    supervisor.drain(replica)
    supervisor.drain(replica)
    assert view_of(supervisor, replica).phase is WorkerPhase.DRAINING
    dead = wait_for(supervisor, replica, WorkerPhase.DEAD)
    assert (dead.exit_code, dead.why) == (0, None)
    assert boot_ticks(dead.pid) is None, "it was not reaped"


def test_words_of_the_command_are_filled_in(
    supervise: Callable[..., Supervisor], tmp_path: Path
) -> None:
    out = tmp_path / "said"
    script = "import os, sys; open(os.environ['OUT'], 'w').write(' '.join(sys.argv[1:]))"
    told = WorkerPool(
        name="prefill",
        argv=(sys.executable, "-c", script, "{replica}", "{gpus}", '{"json": "{gpus}"}'),
        env={"OUT": str(out), "DYN_SYSTEM_PORT": "{system_port}"},
    )
    supervisor = supervise(told)
    replica = supervisor.start("prefill", ("GPU-a", "GPU-b"))
    wait_for(supervisor, replica, WorkerPhase.DEAD)
    assert out.read_text() == f'{replica} GPU-a,GPU-b {{"json": "GPU-a,GPU-b"}}'


def test_gpus_of_a_live_replica_are_refused_until_it_is_dead(
    supervise: Callable[..., Supervisor],
) -> None:
    supervisor = supervise(pool("a"), pool("b"))
    replica = supervisor.start("a", ("GPU-a",))
    with pytest.raises(InputError, match=r"GPU-a.*has them"):
        supervisor.start("b", ("GPU-b", "GPU-a"))
    wait_for(supervisor, replica, WorkerPhase.READY)
    supervisor.drain(replica)
    wait_for(supervisor, replica, WorkerPhase.DEAD)
    again = supervisor.start("b", ("GPU-a",))
    assert again != replica


def test_a_death_of_its_own_is_noticed_and_named(supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise(pool("crash", "crash"), pool("ready"))
    crashed = supervisor.start("crash", ("GPU-a",))
    view = wait_for(supervisor, crashed, WorkerPhase.DEAD)
    assert view.exit_code == 7
    assert "by itself with exit code 7" in (view.why or "")
    killed = supervisor.start("ready", ("GPU-b",))
    os.kill(wait_for(supervisor, killed, WorkerPhase.READY).pid, signal.SIGKILL)
    view = wait_for(supervisor, killed, WorkerPhase.DEAD)
    assert view.exit_code == -signal.SIGKILL
    assert "by itself" in (view.why or "")


def test_only_one_that_does_not_end_in_its_time_is_killed(
    supervise: Callable[..., Supervisor],
) -> None:
    supervisor = supervise(pool("stubborn", "stubborn", drain_limit_s=0.5))
    replica = supervisor.start("stubborn", ("GPU-a",))
    wait_for(supervisor, replica, WorkerPhase.READY)
    supervisor.drain(replica)
    view = wait_for(supervisor, replica, WorkerPhase.DEAD)
    assert view.exit_code == -signal.SIGKILL
    assert (view.why or "").startswith("killed: not done")


def test_one_that_never_gets_ready_is_ended(supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise(pool("never", "never", start_limit_s=0.5))
    replica = supervisor.start("never", ("GPU-a",))
    view = wait_for(supervisor, replica, WorkerPhase.DEAD)
    assert "not ready within" in (view.why or "")


def test_one_that_somebody_else_ends_is_seen_draining(
    supervise: Callable[..., Supervisor],
) -> None:
    supervisor = supervise(pool("slow", "ready", "1.5"))
    replica = supervisor.start("slow", ("GPU-a",))
    os.kill(wait_for(supervisor, replica, WorkerPhase.READY).pid, signal.SIGTERM)
    wait_for(supervisor, replica, WorkerPhase.DRAINING)
    assert wait_for(supervisor, replica, WorkerPhase.DEAD).why is None


FIRST = """
import sys, time
from pathlib import Path
from wattline.live.supervisor import Supervisor, WorkerPool
pool = WorkerPool(name="decode", argv=(sys.executable, sys.argv[1], "{metrics_port}", "ready"))
supervisor = Supervisor([pool], Path(sys.argv[2]))
names = [supervisor.start("decode", (gpu,)) for gpu in ("GPU-a", "GPU-b")]
while [view.phase.value for view in supervisor.replicas()] != ["ready", "ready"]:
    time.sleep(0.02)
if sys.argv[3] == "abandon":
    supervisor.abandon()
print(*names, *(view.pid for view in supervisor.replicas()), flush=True)
if sys.argv[3] == "wait":
    time.sleep(600)
"""


@pytest.mark.parametrize("end", ["wait", "abandon"])
def test_a_supervisor_that_follows_goes_on_with_running_workers(
    supervise: Callable[..., Supervisor], tmp_path: Path, end: str
) -> None:
    command = [sys.executable, "-c", FIRST, TOY, str(tmp_path / "workers"), end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        kept, gone, kept_pid, gone_pid = first.stdout.readline().split()
        if end == "wait":
            first.kill()
        first.wait(WITHIN_S)
    os.kill(int(gone_pid), signal.SIGKILL)
    while boot_ticks(int(gone_pid)) is not None:
        time.sleep(0.02)
    second = supervise(pool("decode"))
    assert [view.replica for view in second.replicas()] == [kept]
    view = wait_for(second, kept, WorkerPhase.READY)
    assert (view.adopted, view.pid, view.gpus) == (True, int(kept_pid), ("GPU-a",))
    with pytest.raises(InputError, match="has them"):
        second.start("decode", ("GPU-a",))
    assert second.start("decode", ("GPU-b",)) not in (kept, gone)
    second.drain(kept)
    assert wait_for(second, kept, WorkerPhase.DEAD).exit_code is None


def test_a_process_that_has_the_id_of_an_old_worker_is_left_alone(
    supervise: Callable[..., Supervisor], tmp_path: Path
) -> None:
    folder = tmp_path / "workers"
    folder.mkdir()
    note = {
        "replica": "decode-4",
        "pool": "decode",
        "gpus": ["GPU-a"],
        "pid": os.getpid(),
        "started_ticks": 1,
        "metrics_port": 1,
        "system_port": 2,
        "asked": False,
    }
    (folder / "decode-4.json").write_text(json.dumps(note))
    supervisor = supervise(pool("decode"))
    assert supervisor.replicas() == ()
    assert not list(folder.glob("*.json"))
    other = Adopted(os.getpid(), 1)
    assert not other.alive()
    other.send(signal.SIGKILL)  # we are still here
    assert supervisor.start("decode", ()) == "decode-5"


def test_what_cannot_be_used_is_said_in_one_line(
    supervise: Callable[..., Supervisor], tmp_path: Path
) -> None:
    supervisor = supervise(pool("a"), WorkerPool(name="b", argv=("/no/such/program",)))
    with pytest.raises(InputError, match="use one of a, b"):
        supervisor.start("c", ())
    with pytest.raises(InputError, match="none of this name"):
        supervisor.drain("a-1")
    with pytest.raises(WattlineError, match=r"/no/such/program: No such file"):
        supervisor.start("b", ())
    assert supervisor.replicas() == ()
    with pytest.raises(InputError, match="each name once"):
        Supervisor([pool("a"), pool("a")], tmp_path / "other")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a-1.json").write_text("{}")
    with pytest.raises(InputError, match="no note of a replica"):
        Supervisor([pool("a")], broken)


def test_a_folder_that_cannot_be_written_ends_nothing(
    supervise: Callable[..., Supervisor], tmp_path: Path
) -> None:
    supervisor = supervise(pool("ready"))
    kept = supervisor.start("ready", ("GPU-a",))
    wait_for(supervisor, kept, WorkerPhase.READY)
    shutil.rmtree(tmp_path / "workers")
    with pytest.raises(WattlineError, match=r"ready-2\.log: No such file"):
        supervisor.start("ready", ("GPU-b",))
    assert view_of(supervisor, kept).phase is WorkerPhase.READY
    supervisor.drain(kept)
    assert wait_for(supervisor, kept, WorkerPhase.DEAD).exit_code == 0


def test_gpus_of_the_dead_are_cleaned_up_before_the_death_is_shown(
    supervise: Callable[..., Supervisor], tmp_path: Path
) -> None:
    cleaned: list[tuple[str, ...]] = []

    def after_death(gpus: tuple[str, ...]) -> None:
        cleaned.append(gpus)
        raise WattlineError("the node is gone")  # which ends nothing

    watched = replace(pool("crash", "crash"), after_death=after_death)
    folder = tmp_path / "workers"
    folder.mkdir()
    note = {"replica": "crash-1", "pool": "crash", "gpus": ["GPU-z"], "pid": 1, "started_ticks": -1}
    (folder / "crash-1.json").write_text(json.dumps(note))
    supervisor = supervise(watched)
    assert cleaned == [("GPU-z",)], "it died while nobody looked"
    replica = supervisor.start("crash", ("GPU-a", "GPU-b"))
    wait_for(supervisor, replica, WorkerPhase.DEAD)
    assert cleaned[1:] == [("GPU-a", "GPU-b")]


def test_stop_reaps_everything(supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise(pool("ready"), pool("stubborn", "stubborn"))
    for name in ("ready", "stubborn"):
        wait_for(supervisor, supervisor.start(name, (f"GPU-{name}",)), WorkerPhase.READY)
    supervisor.stop(limit_s=1.0)
    views = supervisor.replicas()
    assert {view.phase for view in views} == {WorkerPhase.DEAD}
    assert [boot_ticks(view.pid) for view in views] == [None, None]
