"""Faults on Dynamo's own planner and on our plugin in it, beside a live stack under load.

The planner scales a deployment of mock workers of its own (its virtual connector writes decisions
to an etcd); the plugin answers from the plan of the live stack's controller. What is shown: however
the two end, the enforced limits keep the budget, requests go on, and the plugin has its say again.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "contract" / "planner"))

from planner_stack import DECODE_WORKERS, Plugin, Stack, find_etcd, running

from live_faults_run import FaultStack, Harness, Load, Outcome, spec
from wattline.live import environment
from wattline.live.stack_spec import plan_file

NAME = "second-line"
WANTED = 40
"""Decode workers that somebody proposes: far more than the budget has watts for."""
DOWN_S = 5.0
_LOAD_S = 300.0


def planner_faults(folder: Path) -> list[Outcome]:
    """Plugin and planner killed; one outcome that says why where the planner cannot be had."""
    found, etcd = environment.find(planner=True), find_etcd(os.environ)
    if found is None or etcd is None:
        outcome = Outcome(fault="planner killed", how="", holds="")
        outcome.failures.append("not done: it needs Dynamo's planner and etcd")
        return [outcome]
    (folder / "planner").mkdir()
    wanted = spec(each=1, frontends=1, plugin=True)
    with (
        FaultStack(folder / "beside", wanted, found) as stack,
        running(found, etcd, folder / "planner") as planner,
    ):
        stack.ready()
        run = Harness(stack, Load(stack, _LOAD_S))
        try:
            holder = [_plugin(planner, stack)]
            _plugin_killed(run, planner, holder)
            _planner_killed(run, planner)
            run.finish()
        finally:
            run.close()
    return run.outcomes


def _plugin(planner: Stack, stack: FaultStack) -> Plugin:
    return planner.plugin(
        plan_file(stack.folder), "--listen", "127.0.0.1:0", "--id", NAME, "--stale-s", "15",
        "--register", planner.gateway, "--secret-file", str(planner.folder / "first"),
    )  # fmt: skip


def _plugin_killed(run: Harness, planner: Stack, holder: list[Plugin]) -> Outcome:
    answered = 0.0

    def inject(outcome: Outcome) -> float:
        nonlocal answered
        run.stack.until(lambda: planner.evaluations(NAME, "at_most") > 2, "a plugin in use")
        planner.want(WANTED)
        until = planner.ticks() + 3
        run.stack.until(lambda: planner.ticks() >= until, "three ticks of the planner")
        held = WANTED not in planner.decided()
        run.expect(outcome, "the planner decided more than the plugin allows", held)
        holder[0].child.end(signal.SIGKILL)
        run.stack.until(lambda: WANTED in planner.decided(), "a planner without our say")
        time.sleep(DOWN_S)
        planner.want(DECODE_WORKERS)
        answered = planner.evaluations(NAME, "at_most")
        holder[0] = _plugin(planner, run.stack)
        return time.monotonic()

    return run.fault(
        "plugin killed",
        f"SIGKILL while 40 workers are proposed; started again {DOWN_S:g} s after the planner "
        "decided so",
        "the planner asks it again",
        inject,
        lambda: planner.evaluations(NAME, "at_most") > answered,
    )


def _planner_killed(run: Harness, planner: Stack) -> Outcome:
    def inject(outcome: Outcome) -> float:
        planner.planner.end(signal.SIGKILL)
        time.sleep(DOWN_S)
        begun_s = time.monotonic()
        planner.start_planner()
        return begun_s

    return run.fault(
        "planner killed",
        f"SIGKILL, started again after {DOWN_S:g} s",
        "the new planner asks the plugin, which registered again",
        inject,
        lambda: planner.evaluations(NAME, "at_most") > 0,
    )
