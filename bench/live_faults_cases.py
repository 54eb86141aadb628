"""The faults: how each is done, and what has to hold again after it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from faults_rival import Rival
from live_faults_proxy import Mode
from live_faults_run import BUDGET_W, CUT_W, Harness, Outcome
from wattline.live.stack import CONTROLLER, PROMETHEUS
from wattline.recording.segments import segment_files

DOWN_S = 5.0
"""How long most causes last."""
HUNG_S = 8.0
LARGEST_W = 700.0
ANSWERED_S = 5.0
"""For so long every request has to be answered, to say that they are."""
_LEAST_TICKS = 3


def _history_fresh(run: Harness) -> bool:
    """Prometheus answers, and what it says is of now and complete."""
    history = run.stack.state()["prometheus"]
    fresh = history["why"] is None and history["age_s"] is not None and history["age_s"] < 5.0
    return fresh and not any(text.startswith("requests") for text in history["missing"])


def prometheus_stopped(run: Harness) -> Outcome:
    def inject(outcome: Outcome) -> float:
        run.stack.kill(PROMETHEUS)
        time.sleep(HUNG_S)
        run.stack.start(PROMETHEUS)
        return time.monotonic()

    return run.fault(
        "Prometheus stopped",
        f"SIGKILL, started again after {HUNG_S:g} s",
        "its answers are fresh again",
        inject,
        lambda: _history_fresh(run),
        r"api/v1/query|no answer for",
    )


def prometheus_hung(run: Harness) -> Outcome:
    def inject(outcome: Outcome) -> float:
        run.stack.stop(PROMETHEUS)
        time.sleep(HUNG_S)
        run.stack.resume(PROMETHEUS)
        return time.monotonic()

    return run.fault(
        "Prometheus hangs",
        f"SIGSTOP for {HUNG_S:g} s",
        "its answers are fresh again",
        inject,
        lambda: _history_fresh(run),
        r"no (whole )?answer",
    )


def _lying(run: Harness, name: str, how: str, mode: Mode, seconds: float, named: str) -> Outcome:
    def inject(outcome: Outcome) -> float:
        proxy = run.stack.proxies[PROMETHEUS]
        proxy.turn(mode)
        time.sleep(seconds)
        proxy.turn(Mode.PASS)
        return time.monotonic()

    holds = "its answers are fresh again"
    return run.fault(name, how, holds, inject, lambda: _history_fresh(run), named)


def prometheus_nan(run: Harness) -> Outcome:
    how = f"every value of every answer is NaN for {HUNG_S:g} s"
    return _lying(run, "Prometheus NaN", how, Mode.NAN, HUNG_S, "nan")


def _unreadable(run: Harness, name: str, how: str, seconds: float, *, stale: bool) -> Outcome:
    """The controller cannot read the frontends, which serve: Prometheus is all it has."""

    def inject(outcome: Outcome) -> float:
        proxies = run.stack.proxies
        if stale:
            proxies[PROMETHEUS].turn(Mode.STALE)
        for frontend in run.stack.frontends:
            proxies[frontend].turn(Mode.NO_PAGES)
        time.sleep(seconds)
        state = run.stack.state()
        outage = state["deployments"][0]["facts"]["outage"]
        run.expect(outcome, f"outage: {outage}", (outage is not None) == stale)
        kept = state["budget"]["booked_w"] > 0.8 * state["budget"]["usable_w"]
        run.expect(outcome, f"only {state['budget']['booked_w']} W are booked: not held", kept)
        for proxy in proxies.values():
            proxy.turn(Mode.PASS)
        return time.monotonic()

    def holds() -> bool:
        state = run.stack.state()
        missing = [text for text in state["missing"] if "cached" not in text]
        known = state["deployments"][0]["facts"]["outage"] is None
        return known and not missing and _history_fresh(run)

    return run.fault(name, how, "demand is known from the frontends", inject, holds, "answers 503")


def frontends_unreadable(run: Harness) -> Outcome:
    how = "their /metrics answers 503 for 20 s; Prometheus goes on"
    return _unreadable(run, "frontends unreadable", how, 20.0, stale=False)


def prometheus_stale(run: Harness) -> Outcome:
    how = "the same, and Prometheus answers as of when that began: no new samples"
    return _unreadable(run, "... and Prometheus stale", how, 25.0, stale=True)


def prometheus_slow(run: Harness) -> Outcome:
    how = f"each answer takes 30 s, for {HUNG_S:g} s"
    return _lying(run, "Prometheus slow", how, Mode.SLOW, HUNG_S, "no (whole )?answer")


def frontend_killed(run: Harness) -> Outcome:
    def inject(outcome: Outcome) -> float:
        proxy = run.stack.proxies["frontend-1"]
        run.stack.kill("frontend-1")
        proxy.close()  # nothing listens there either
        time.sleep(DOWN_S)
        run.stack.start("frontend-1")
        run.stack.proxies["frontend-1"] = proxy.again()
        return time.monotonic()

    def holds() -> bool:
        state = run.stack.state()
        frontends = all(entry["why"] is None for entry in state["admission"]["frontends"])
        serves = run.stack.ask("frontend-1") == 200
        known = state["deployments"][0]["facts"]["outage"] is None
        return serves and frontends and known and run.thresholds()

    return run.fault(
        "frontend killed",
        f"SIGKILL of one of two, started again after {DOWN_S:g} s",
        "it answers, has its thresholds again, and demand is known",
        inject,
        holds,
        "refuses connections",
    )


def frontend_refuses(run: Harness) -> Outcome:
    """The frontend has forgotten its thresholds, and does not take them."""

    def inject(outcome: Outcome) -> float:
        proxy = run.stack.proxies["frontend-2"]
        before = run.stack.state()["counters"]["admission_partial_failures"]
        proxy.turn(Mode.REFUSE_POSTS)
        run.stack.restart("frontend-2")
        run.stack.until(lambda: run.stack.ask("frontend-2") == 200, "an answer of frontend-2")
        run.stack.until(lambda: proxy.posts_refused >= 3, "three refused posts")
        state = run.stack.state()
        views = {entry["url"]: entry for entry in state["admission"]["frontends"]}
        run.expect(outcome, "the refusing frontend is not named", views[proxy.url]["why"])
        other = views[run.stack.proxies["frontend-1"].url]
        run.expect(outcome, "the other frontend fails too", other["why"] is None)
        run.expect(outcome, "the other frontend has no thresholds", other["held"] is not None)
        counted = state["counters"]["admission_partial_failures"] > before
        run.expect(outcome, "no partial failure was counted", counted)
        status, _ = run.stack.get(f"{run.stack.urls[CONTROLLER]}/readyz")
        run.expect(outcome, "the controller says that it is ready", status == 503)
        proxy.turn(Mode.PASS)
        return time.monotonic()

    return run.fault(
        "frontend refuses posts",
        "one of two is restarted and answers 500 to every POST, until three were refused",
        "both have the wanted thresholds",
        inject,
        run.thresholds,
        "answers 500",
    )


def worker_killed(run: Harness) -> Outcome:
    def inject(outcome: Outcome) -> float:
        notes = [note for note in run.stack.workers() if note.pool == "decode"]
        run.stack.kill(notes[0].replica)
        return time.monotonic()

    def holds() -> bool:
        pools = {pool["name"]: pool for pool in run.stack.state()["pools"]}
        alive = [note for note in run.stack.workers() if note.pool == "decode"]
        return pools["decode"]["ready"] == 2 and len(alive) == 2 and run.answered(ANSWERED_S)

    def gone_then_back() -> Callable[[], bool]:
        seen_less = False

        def look() -> bool:
            nonlocal seen_less
            seen_less = seen_less or not holds()
            return seen_less and holds()

        return look

    outcome = run.fault(
        "worker killed",
        "SIGKILL of one of two decode workers",
        "two decode workers serve, and every request is answered",
        inject,
        gone_then_back(),
    )
    if outcome.recover_s is not None:
        outcome.recover_s -= ANSWERED_S  # it was so from the beginning of that time on
    return outcome


def agent_killed(run: Harness) -> Outcome:
    def inject(outcome: Outcome) -> float:
        with run.hindered("node-2", "agent down"):
            before_w = run.stack.watts.enforced_w(["decode"])
            run.stack.kill("agent-node-2")
            time.sleep(DOWN_S + 2.0)
            state = run.stack.state()
            silent = [node["why"] for node in state["nodes"] if node["name"] == "node-2"]
            run.expect(outcome, "the silent node is not named", silent[0] is not None)
            same = run.stack.watts.enforced_w(["decode"]) == before_w
            run.expect(outcome, "limits moved while the agent was dead", same)
            run.stack.start("agent-node-2")
            return time.monotonic()

    return run.fault(
        "agent killed",
        f"SIGKILL of one of two, started again after {DOWN_S + 2.0:g} s",
        "its node is heard, and its limits are as granted",
        inject,
        lambda: _node_obeys(run, "node-2"),
        "node node-2: its newest report",
    )


def _heard(run: Harness) -> bool:
    return all(node["why"] is None for node in run.stack.state()["nodes"])


def _node_obeys(run: Harness, node: str) -> bool:
    state = run.stack.state()
    heard = all(entry["why"] is None for entry in state["nodes"] if entry["name"] == node)
    obeyed = all(
        gpu["enforced_w"] is not None and abs(gpu["enforced_w"] - gpu["granted_w"]) < 1.0
        for gpu in state["gpus"]
    )
    return heard and obeyed


def _controller_back(run: Harness, epoch: int) -> bool:
    """Ready, some ticks old, under a new epoch, and every node is heard."""
    status, _ = run.stack.get(f"{run.stack.urls[CONTROLLER]}/readyz")
    state = run.stack.state()
    heard = all(node["why"] is None for node in state["nodes"])
    return (
        status == 200
        and state["epoch"] > epoch
        and state["counters"]["ticks"] >= _LEAST_TICKS
        and heard
    )


def controller_killed(run: Harness) -> Outcome:
    epoch = 0

    def inject(outcome: Outcome) -> float:
        nonlocal epoch
        epoch = run.stack.state()["epoch"]
        observer = run.stack.watts.observer
        assert observer is not None
        run.stack.kill(CONTROLLER)
        time.sleep(DOWN_S)
        changes = len(observer.changes)
        run.stack.start(CONTROLLER)
        mended_s = time.monotonic()
        run.stack.until(lambda: run.stack.state()["epoch"] > epoch, "a new epoch")
        first = run.stack.state()
        usable_w = first["budget"]["usable_w"] + first["budget"]["exposure_w"]
        knows = first["budget"]["booked_w"] <= usable_w + 0.1
        run.expect(outcome, f"it began by booking {first['budget']['booked_w']} W", knows)
        raised = [c for c in observer.changes[changes:] if c.enforced_mw > c.before_mw]
        outcome.said = f"{len(raised)} raises since its start, booked {first['budget']['booked_w']}"
        return mended_s

    return run.fault(
        "controller killed",
        f"SIGKILL, started again after {DOWN_S:g} s",
        "ready under a new epoch, every node heard under it",
        inject,
        lambda: _controller_back(run, epoch),
    )


def controller_without_log(run: Harness) -> Outcome:
    """The new one knows nothing, and one node does not answer it."""
    epoch = 0

    def inject(outcome: Outcome) -> float:
        nonlocal epoch
        epoch = run.stack.state()["epoch"]
        observer = run.stack.watts.observer
        assert observer is not None
        with run.hindered("node-2", "agent stopped"):
            run.stack.kill(CONTROLLER)
            run.stack.stop("agent-node-2")
            (run.stack.folder / "controller" / "grants.log").unlink()
            changes = len(observer.changes)
            run.stack.start(CONTROLLER)
            run.stack.until(lambda: run.stack.state()["epoch"] > epoch, "a new epoch")
            # The report that lies there is news to it, and old only seconds later.
            time.sleep(HUNG_S)
            state = run.stack.state()
            silent = [gpu for gpu in state["gpus"] if gpu["pool"] == "decode"]
            booked_w = [gpu["booked_w"] for gpu in silent]
            most = all(watts == LARGEST_W for watts in booked_w)
            run.expect(outcome, f"of the silent node {booked_w} W are booked", most)
            raised = [c for c in observer.changes[changes:] if c.enforced_mw > c.before_mw]
            run.expect(outcome, f"raised before all nodes were known: {raised[:2]}", not raised)
            run.stack.resume("agent-node-2")
            return time.monotonic()

    return run.fault(
        "controller without its log",
        "SIGKILL, grant log deleted, one agent stopped until 8 s after the new start",
        "ready under a new epoch, every node heard under it",
        inject,
        lambda: _controller_back(run, epoch) and run.stack.state()["budget"]["exposure_w"] == 0.0,
        "node node-2",
    )


def controller_killed_in_a_cut(run: Harness) -> Outcome:
    """The cut is on disk, and nobody has carried it out yet."""

    def inject(outcome: Outcome) -> float:
        run.stack.set_budget(CUT_W)
        with run.hindered(None, "controller down"):
            run.stack.kill(CONTROLLER)
            time.sleep(2.0)
            run.stack.start(CONTROLLER)
            mended_s = time.monotonic()
            run.stack.until(lambda: run.stack.state()["tick"] >= 0, "a tick")
        total_w = run.stack.state()["budget"]["total_w"]
        run.expect(outcome, f"after the restart the budget is {total_w}", total_w == CUT_W)
        return mended_s

    outcome = run.fault(
        "controller killed in a cut",
        f"SIGKILL as soon as the cut to {CUT_W:g} W was taken, started again after 2 s",
        "limits are within the new budget",
        inject,
        run.stack.watts.within,
    )
    run.stack.set_budget(BUDGET_W)
    return outcome


def cut_under_load(run: Harness) -> Outcome:
    def inject(outcome: Outcome) -> float:
        at_s = time.monotonic()
        run.stack.set_budget(CUT_W)
        if run.sabotage == "secret":
            _raise_in_secret(run)
        return at_s

    outcome = run.fault(
        "budget cut under load",
        f"from {BUDGET_W:g} to {CUT_W:g} W by an operator's call",
        "limits are within the new budget",
        inject,
        run.stack.watts.within,
    )
    run.stack.set_budget(BUDGET_W)
    return outcome


def _raise_in_secret(run: Harness) -> None:
    """Let another process raise limits, and tell the judge nothing of it."""
    run.stack.until(run.stack.watts.within, "the cut enforced")
    node = run.stack.nodes["node-1"]
    rival = Rival(node)
    try:
        for uuid in node.gpus.uuids():
            rival.write(uuid, 700.0)
        time.sleep(0.3)
    finally:
        rival.close()


def cut_with_dead_agents(run: Harness) -> Outcome:
    """What software cannot do: nobody is there who could lower a limit."""

    def inject(outcome: Outcome) -> float:
        with run.hindered("node-1", "agent down"), run.hindered("node-2", "agent down"):
            for name in run.stack.agents:
                run.stack.kill(name)
            run.stack.set_budget(CUT_W)
            time.sleep(DOWN_S)
            over = run.stack.state()["budget"]
            told = over["booked_w"] > over["usable_w"]
            run.expect(outcome, f"{over['booked_w']} W booked: the cut is taken for done", told)
            for name in run.stack.agents:
                run.stack.start(name)
            mended_s = time.monotonic()
            run.stack.until(lambda: _heard(run), "agents that report")
        return mended_s

    outcome = run.fault(
        "cut while agents are dead",
        f"SIGKILL of both agents, a cut to {CUT_W:g} W, the agents again after {DOWN_S:g} s",
        "limits are within the new budget",
        inject,
        run.stack.watts.within,
    )
    run.stack.set_budget(BUDGET_W)
    return outcome


def disk_full(run: Harness) -> Outcome:
    """The recording's disk takes no more."""
    ballast = run.stack.disk / "ballast"

    def inject(outcome: Outcome) -> float:
        before = run.stack.state()
        _fill(ballast)
        run.stack.until(lambda: run.stack.state()["recorder"]["why"] is not None, "a full disk")
        time.sleep(DOWN_S)
        state = run.stack.state()
        lost = state["recorder"]["lost_ticks"] - before["recorder"]["lost_ticks"]
        run.expect(outcome, "no lost tick was counted", lost >= _LEAST_TICKS)
        run.expect(outcome, "the loop stood still", state["tick"] - before["tick"] >= _LEAST_TICKS)
        ballast.unlink()
        return time.monotonic()

    if not run.stack.mounted:
        outcome = Outcome(fault="recorder's disk full", how="no tmpfs may be mounted", holds="")
        outcome.failures.append("not done: mounting a small file system needs root")
        run.outcomes.append(outcome)
        return outcome
    return run.fault(
        "recorder's disk full",
        f"its file system has no byte left for {DOWN_S:g} s",
        "ticks are recorded again",
        inject,
        lambda: run.stack.state()["recorder"]["why"] is None,
        "recording: .*No space left",
    )


def _fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def recording_replays(run: Harness) -> list[str]:
    """After all of it: every tick that was recorded is recomputed to the byte."""
    found = run.replayed()
    wrong = [] if found is None else [f"the recording is not replayed: {found}"]
    return wrong if segment_files(run.stack.disk) else ["nothing was recorded"]


CASES: dict[str, Callable[[Harness], Outcome]] = {
    "prometheus-stopped": prometheus_stopped,
    "prometheus-hung": prometheus_hung,
    "prometheus-nan": prometheus_nan,
    "prometheus-slow": prometheus_slow,
    "frontends-unreadable": frontends_unreadable,
    "prometheus-stale": prometheus_stale,
    "frontend-killed": frontend_killed,
    "frontend-refuses": frontend_refuses,
    "worker-killed": worker_killed,
    "agent-killed": agent_killed,
    "controller-killed": controller_killed,
    "controller-without-log": controller_without_log,
    "controller-killed-in-a-cut": controller_killed_in_a_cut,
    "cut": cut_under_load,
    "cut-with-dead-agents": cut_with_dead_agents,
    "disk-full": disk_full,
}
"""By name, in the order in which they are done."""
