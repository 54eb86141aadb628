"""Starts, watches and drains local worker processes; a caller decides when and on which GPUs.

The caller's duty: `start` is called only when the watts of a starting replica are free and booked,
and the watts of a drained one are given to others only when its GPUs are seen idle and parked. The
supervisor knows nothing of watts.

A replica is one process and keeps its name for life; a new process is a new replica. Each is noted
in a file of its own, so that a supervisor that starts after another was killed finds the workers
that are still serving and goes on with them.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wattline.core.errors import InputError, WattlineError
from wattline.live.processes import Adopted, Child, Process, boot_ticks, free_ports, probe

log = logging.getLogger(__name__)

LOOK_S = 0.2
_MOST_DEAD = 64


class WorkerPhase(StrEnum):
    """Life of a worker process."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPool:
    """How replicas of one pool are started.

    In `argv` and in the values of `env`, which adds to this process's own, `{gpus}` stands for the
    UUIDs with commas between, `{replica}` for the name, `{metrics_port}` and `{system_port}` for
    free ports of loopback. The worker answers `/readyz` on the metrics port with 200 while it is
    registered and serving. start_limit_s: after which a worker that is not ready is ended;
    drain_limit_s: after which one that was asked to end is killed. `after_death` is called with the
    GPUs of each worker that has ended, in the supervisor's thread, before the death is shown.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    start_limit_s: float = 300.0
    drain_limit_s: float = 180.0
    after_death: Callable[[tuple[str, ...]], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """A replica as it was seen last. `why` says how it died; times are of `time.monotonic`.

    adopted: an earlier supervisor started it. exit_code: None while it lives, and for adopted ones.
    unanswered_s: for how long its page has not answered; 0 where the last look was answered.
    """

    replica: str
    pool: str
    gpus: tuple[str, ...]
    phase: WorkerPhase
    pid: int
    metrics_url: str
    system_url: str
    adopted: bool
    since_s: float
    unanswered_s: float
    exit_code: int | None
    why: str | None


@dataclass(slots=True)
class _Worker:
    replica: str
    pool: WorkerPool
    gpus: tuple[str, ...]
    process: Process
    metrics_port: int
    system_port: int
    adopted: bool
    phase: WorkerPhase
    since_s: float
    answered_s: float
    asked_s: float | None = None
    killed: bool = False
    why: str | None = None


class Supervisor:
    """The workers of some pools on this machine. A context manager: leaves by `stop`.

    `folder` holds the notes of replicas and their logs. Safe to call from any thread. A thread of
    its own looks after the processes every 0.2 s.
    """

    def __init__(self, pools: Sequence[WorkerPool], folder: Path) -> None:
        """Goes on with workers that an earlier supervisor of this folder left behind."""
        self._pools = {pool.name: pool for pool in pools}
        if len(self._pools) != len(pools):
            raise InputError("pools", [pool.name for pool in pools], "each name once")
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._workers: dict[str, _Worker] = {}
        self._next = 1
        self._adopt()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    # What a caller asks

    def start(self, pool: str, gpus: Sequence[str]) -> str:
        """Start a replica on these GPUs and return its name. Their watts must be free and booked.

        InputError for an unknown pool and for GPUs that a live replica has; WattlineError when the
        process cannot be started.
        """
        with self._lock:
            spec = self._pools.get(pool)
            if spec is None:
                raise InputError("pool", pool, f"use one of {', '.join(self._pools)}")
            self._refuse_held(tuple(gpus))
            replica = f"{pool}-{self._next}"
            self._next += 1
            metrics_port, system_port = free_ports(2)
            words = {
                "{gpus}": ",".join(gpus),
                "{replica}": replica,
                "{metrics_port}": str(metrics_port),
                "{system_port}": str(system_port),
            }
            argv = [_filled(word, words) for word in spec.argv]
            env = {name: _filled(value, words) for name, value in spec.env.items()}
            process = self._spawn(replica, argv, env)
            now_s = time.monotonic()
            worker = _Worker(
                replica,
                spec,
                tuple(gpus),
                process,
                metrics_port,
                system_port,
                adopted=False,
                phase=WorkerPhase.STARTING,
                since_s=now_s,
                answered_s=now_s,
            )
            self._workers[replica] = worker
            self._note(worker)
            return replica

    def drain(self, replica: str) -> None:
        """Ask a replica to finish what it has and end; again is harmless. InputError: unknown."""
        with self._lock:
            worker = self._workers.get(replica)
            if worker is None:
                raise InputError("replica", replica, "there is none of this name")
            self._ask_to_end(worker)

    def replicas(self) -> tuple[WorkerView, ...]:
        """All replicas, in the order of their start; the newest 64 dead ones are kept."""
        with self._lock:
            return tuple(_view(worker) for worker in self._workers.values())

    def stop(self, limit_s: float | None = None) -> None:
        """Drain all, wait for the last one, and end. Each is killed after its own drain limit.

        `limit_s` is a common limit after which every worker that is left is killed.
        """
        if self._ended.is_set():
            return
        with self._lock:
            for worker in self._workers.values():
                self._ask_to_end(worker)
        end_s = None if limit_s is None else time.monotonic() + limit_s
        while any(view.phase is not WorkerPhase.DEAD for view in self.replicas()):
            if end_s is not None and time.monotonic() >= end_s:
                with self._lock:
                    for worker in self._workers.values():
                        self._kill(worker, f"was not done {limit_s:.0f} s after the end")
            time.sleep(LOOK_S / 4)
        self._leave()

    def abandon(self) -> None:
        """End without touching the workers: the next supervisor of the folder has them.

        They stay children of this process, which reaps them only by ending.
        """
        self._leave()

    def _leave(self) -> None:
        self._ended.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # Processes

    def _spawn(self, replica: str, argv: list[str], env: dict[str, str]) -> Process:
        try:
            with (self._folder / f"{replica}.log").open("ab") as output:
                child = subprocess.Popen(
                    argv,
                    env={**os.environ, **env},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches us alone: we drain them
                )
        except OSError as error:
            where = error.filename or argv[0]
            raise WattlineError(f"{where}: {error.strerror or error}") from None
        return Child(child)

    def _refuse_held(self, gpus: tuple[str, ...]) -> None:
        for worker in self._workers.values():
            held = set(worker.gpus) & set(gpus)
            if held and worker.phase is not WorkerPhase.DEAD:
                raise InputError("GPUs", sorted(held), f"replica {worker.replica} has them")

    def _ask_to_end(self, worker: _Worker) -> None:
        if worker.phase is WorkerPhase.DEAD or worker.asked_s is not None:
            return
        worker.asked_s = time.monotonic()
        _enter(worker, WorkerPhase.DRAINING)
        worker.process.send(signal.SIGTERM)
        self._note(worker)

    def _kill(self, worker: _Worker, why: str) -> None:
        if worker.phase is not WorkerPhase.DEAD and not worker.killed:
            worker.killed = True
            worker.why = f"killed: {why}"
            log.warning("a worker is killed", extra={"replica": worker.replica, "why": why})
            worker.process.send(signal.SIGKILL)

    # Looking after them

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            with self._lock:
                workers = [w for w in self._workers.values() if w.phase is not WorkerPhase.DEAD]
            answers = [probe(worker.metrics_port) for worker in workers]
            with self._lock:
                for worker, answer in zip(workers, answers, strict=True):
                    self._look(worker, answer)
                self._forget_oldest()

    def _look(self, worker: _Worker, answer: int | None) -> None:
        now_s = time.monotonic()
        if not worker.process.alive():
            self._bury(worker)
            return
        if answer is not None:
            worker.answered_s = now_s
        if answer == 200 and worker.phase is WorkerPhase.STARTING:
            _enter(worker, WorkerPhase.READY)
        elif answer == 503 and worker.phase is WorkerPhase.READY:
            _enter(worker, WorkerPhase.DRAINING)  # somebody else asked it to end
            worker.asked_s = now_s
        late = worker.phase is WorkerPhase.STARTING and (
            now_s - worker.since_s > worker.pool.start_limit_s
        )
        if late:
            worker.why = f"not ready within {worker.pool.start_limit_s:.0f} s"
            self._ask_to_end(worker)
        if worker.asked_s is not None and now_s - worker.asked_s > worker.pool.drain_limit_s:
            self._kill(worker, f"not done {worker.pool.drain_limit_s:.0f} s after it was asked")

    def _bury(self, worker: _Worker) -> None:
        asked = worker.asked_s is not None
        _clean_up(worker.pool, worker.gpus)
        _enter(worker, WorkerPhase.DEAD)
        code = worker.process.exit_code
        if worker.why is None and not (asked and code in (0, None)):
            ending = "with an unknown exit code" if code is None else f"with exit code {code}"
            worker.why = f"ended {'' if asked else 'by itself '}{ending}: see {worker.replica}.log"
            log.warning("a worker ended", extra={"replica": worker.replica, "why": worker.why})
        try:
            self._file_of(worker.replica).unlink(missing_ok=True)
        except OSError as error:  # the next supervisor sees that the process is gone
            log.warning("a note stays", extra={"replica": worker.replica, "why": str(error)})

    def _forget_oldest(self) -> None:
        dead = [w.replica for w in self._workers.values() if w.phase is WorkerPhase.DEAD]
        for replica in dead[: max(0, len(dead) - _MOST_DEAD)]:
            del self._workers[replica]

    # Notes

    def _file_of(self, replica: str) -> Path:
        return self._folder / f"{replica}.json"

    def _note(self, worker: _Worker) -> None:
        document = {
            "replica": worker.replica,
            "pool": worker.pool.name,
            "gpus": worker.gpus,
            "pid": worker.process.pid,
            "started_ticks": worker.process.started_ticks,
            "metrics_port": worker.metrics_port,
            "system_port": worker.system_port,
            "asked": worker.asked_s is not None,
        }
        partial = self._folder / f"{worker.replica}.partial"
        try:
            partial.write_text(json.dumps(document))
            partial.replace(self._file_of(worker.replica))
        except OSError as error:  # a full disk is no reason to end a worker that serves
            why = f"{error.strerror or error}: a later supervisor will not know of it"
            log.error("a worker cannot be noted", extra={"replica": worker.replica, "why": why})

    def _adopt(self) -> None:
        for path in sorted(self._folder.glob("*.json")):
            try:
                worker = self._adopted(json.loads(path.read_text()))
            except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
                what = " ".join(str(error).split())
                raise InputError(str(path), what, "no note of a replica: remove it") from None
            except OSError as error:
                what = error.strerror or str(error)
                raise InputError(str(path), what, "make it readable, or remove it") from None
            number = worker.replica.rpartition("-")[2] if worker else path.stem.rpartition("-")[2]
            self._next = max(self._next, int(number) + 1 if number.isdecimal() else 1)
            if worker is None:
                path.unlink(missing_ok=True)
            else:
                self._workers[worker.replica] = worker

    def _adopted(self, note: dict[str, Any]) -> _Worker | None:
        """The worker of a note; None when that very process is no more."""
        pid, ticks = int(note["pid"]), int(note["started_ticks"])
        pool = self._pools.get(note["pool"])
        if boot_ticks(pid) != ticks:
            if pool is not None:
                _clean_up(pool, tuple(note["gpus"]))
            return None
        if pool is None:
            raise InputError("pool", note["pool"], f"pid {pid} of it still runs: configure it")
        now_s = time.monotonic()
        log.info("a worker was found running", extra={"replica": note["replica"], "pid": pid})
        asked = bool(note["asked"])
        return _Worker(
            str(note["replica"]),
            pool,
            tuple(note["gpus"]),
            Adopted(pid, ticks),
            int(note["metrics_port"]),
            int(note["system_port"]),
            adopted=True,
            phase=WorkerPhase.DRAINING if asked else WorkerPhase.STARTING,
            since_s=now_s,
            answered_s=now_s,
            asked_s=now_s if asked else None,
        )


def _clean_up(pool: WorkerPool, gpus: tuple[str, ...]) -> None:
    if pool.after_death is None:
        return
    try:
        pool.after_death(gpus)
    except (WattlineError, OSError) as error:
        log.error("GPUs of a dead worker", extra={"gpus": gpus, "why": str(error)})


def _enter(worker: _Worker, phase: WorkerPhase) -> None:
    worker.phase = phase
    worker.since_s = time.monotonic()


def _view(worker: _Worker) -> WorkerView:
    return WorkerView(
        replica=worker.replica,
        pool=worker.pool.name,
        gpus=worker.gpus,
        phase=worker.phase,
        pid=worker.process.pid,
        metrics_url=f"http://127.0.0.1:{worker.metrics_port}/metrics",
        system_url=f"http://127.0.0.1:{worker.system_port}/metrics",
        adopted=worker.adopted,
        since_s=worker.since_s,
        unanswered_s=max(0.0, time.monotonic() - worker.answered_s - 2 * LOOK_S),
        exit_code=worker.process.exit_code,
        why=worker.why,
    )


def _filled(text: str, words: Mapping[str, str]) -> str:
    for name, value in words.items():
        text = text.replace(name, value)
    return text
