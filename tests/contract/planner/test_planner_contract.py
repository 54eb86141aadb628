"""The plugin and Dynamo's real planner (1.6.1): what it does with our ceilings, and without them.

A second plugin of the planner's own list proposes more and more decode workers; the workers stay
as they are, 1 prefill and 2 decode. Every test has a plugin under test of its own.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from planner_stack import (
    DECODE_WORKERS,
    GREEDY,
    PREFILL_WORKERS,
    Plugin,
    Stack,
    plan_of,
    wait_until,
)

from wattline.drivers.dynamo.plugin.state_file import write_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

# Failures until the planner's breaker opens, and how long it stays open: release 1.6.1.
BREAKER_FAILURES, BREAKER_OPEN_S = 5, 30.0
FITS_W = 1000.0 * (PREFILL_WORKERS + DECODE_WORKERS)


def register(stack: Stack, folder: Path, plugin_id: str, secret: str = "first") -> Plugin:
    write_state(folder / "plan.json", plan_of(FITS_W), made_s=time.time())
    return stack.plugin(
        folder / "plan.json", "--listen", "127.0.0.1:0", "--id", plugin_id,
        "--register", stack.gateway, "--secret-file", str(stack.folder / secret),
        "--planner-metrics", f"http://127.0.0.1:{stack.planner_port}/metrics",
    )  # fmt: skip


@contextmanager
def registered(stack: Stack, folder: Path, plugin_id: str) -> Iterator[Plugin]:
    """A plugin that the planner asks; it is unregistered at the end."""
    plugin = register(stack, folder, plugin_id)
    try:
        asked(stack, plugin, plugin_id)
        yield plugin
    finally:
        plugin.child.end()
        stack.want(DECODE_WORKERS)


def asked(stack: Stack, plugin: Plugin, plugin_id: str, limit_s: float = 60.0) -> None:
    """Wait until the planner takes ceilings from it (again)."""
    before = stack.evaluations(plugin_id, "at_most")
    wait_until(
        lambda: stack.evaluations(plugin_id, "at_most") > before + 1, plugin.child.tail, limit_s
    )


def never_decided(stack: Stack, decode: int, ticks: int = 4) -> None:
    """Let the planner tick so often, and see that it did not ask for so many."""
    until = stack.ticks() + ticks
    wait_until(lambda: stack.ticks() >= until, stack.planner.tail, 60)
    assert decode not in stack.decided(), stack.planner.tail()


def decided(stack: Stack, decode: int, limit_s: float = 30.0) -> None:
    wait_until(lambda: decode in stack.decided(), stack.planner.tail, limit_s)


def test_ceilings_show_in_the_planner_s_decisions(stack: Stack, tmp_path: Path) -> None:
    with registered(stack, tmp_path, "ceilings") as plugin:
        assert stack.greedy.value("calls_total", {"method": "Bootstrap", "result": "ok"}) == 1.0
        assert stack.evaluations("ceilings", "error") == 0.0
        assert stack.decided() == []
        wait_until(lambda: plugin.value("circuit_state") == 0.0, plugin.child.tail, 15)
        assert plugin.ready() == "ready\n"

        # Growth: 5 are proposed, watts for 3 are there.
        write_state(tmp_path / "plan.json", plan_of(FITS_W + 1000.0), made_s=time.time())
        time.sleep(1.0)
        stack.want(5)
        decided(stack, DECODE_WORKERS + 1)
        never_decided(stack, 5)
        assert stack.decided() == [3]
        capped = stack.metrics().select(
            "dynamo_planner_constrain_capped_total",
            {"source": "ceilings", "sub_component_type": "decode"},
        )
        assert capped[0].value >= 1.0
        # While it grows the expected counts are absent: no tick of those goes beyond the 3.
        assert plugin.value("verdicts_total", {"code": "counts_unsettled"})

        # A cut below what is there: one has to go, though 5 are still proposed.
        write_state(tmp_path / "plan.json", plan_of(FITS_W - 1000.0), made_s=time.time())
        decided(stack, DECODE_WORKERS - 1)
        assert stack.decided() == [3, 1]
        assert plugin.value("ceiling_replicas", {"role": "decode"}) == 1.0


def test_wrong_secret_and_taken_id_are_refused_and_said(stack: Stack, tmp_path: Path) -> None:
    with registered(stack, tmp_path, "owner") as owner:
        (stack.folder / "wrong").write_text("no such secret\n")
        stranger = register(stack, tmp_path, "stranger", "wrong")
        wait_until(lambda: "auth_failed" in stranger.ready(), stranger.child.tail, 15)
        assert "static_secrets" in stranger.ready()
        assert stranger.value("registered", {"plugin_id": "stranger"}) == 0.0
        # The right secret in the same file is enough.
        (stack.folder / "wrong").write_text("first-secret\n")
        wait_until(
            lambda: stranger.value("registered", {"plugin_id": "stranger"}) == 1.0,
            stranger.child.tail,
            30,
        )
        stranger.child.end()

        thief = register(stack, tmp_path, "owner", "second")
        wait_until(lambda: "duplicate_plugin_id" in thief.ready(), thief.child.tail, 15)
        thief.child.end()
        taken = register(stack, tmp_path, GREEDY)
        wait_until(lambda: "duplicate_plugin_id" in taken.ready(), taken.child.tail, 15)
        taken.child.end()
        asked(stack, owner, "owner")
        assert owner.value("registered", {"plugin_id": "owner"}) == 1.0


def test_a_killed_plugin_is_passed_over_and_its_successor_is_asked(
    stack: Stack, tmp_path: Path
) -> None:
    with registered(stack, tmp_path, "mortal") as plugin:
        stack.want(11)
        never_decided(stack, 11)
        plugin.child.end(signal.SIGKILL)
        # Fail-open: no breaker is needed, the first tick without an answer is unconstrained.
        decided(stack, 11)
        assert stack.evaluations("mortal", "error") >= 1.0

        successor = register(stack, tmp_path, "mortal")
        asked(stack, successor, "mortal")
        assert successor.value("registrations_total", {"plugin_id": "mortal"}) == 1.0
        stack.want(12)
        never_decided(stack, 12)
        successor.child.end()


def test_a_hung_plugin_opens_the_breaker_and_comes_back(stack: Stack, tmp_path: Path) -> None:
    with registered(stack, tmp_path, "hung") as plugin:
        stack.want(21)
        never_decided(stack, 21)
        plugin.child.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: stack.circuit("hung") == 1.0, stack.planner.tail, 60)
        failures = stack.evaluations("hung", "error")
        assert failures >= BREAKER_FAILURES
        assert "PluginTimeoutError" in stack.planner.text()
        decided(stack, 21)

        plugin.child.process.send_signal(signal.SIGCONT)
        asked(stack, plugin, "hung", limit_s=2 * BREAKER_OPEN_S)
        assert stack.circuit("hung") == 0.0
        gaps = plugin.value("gaps_total")
        assert gaps is not None
        assert gaps >= 1.0
        stack.want(22)
        never_decided(stack, 22)


def test_a_restarted_planner_is_registered_with_again(stack: Stack, tmp_path: Path) -> None:
    with registered(stack, tmp_path, "patient") as plugin:
        accepted = plugin.value("registrations_total", {"plugin_id": "patient"})
        stack.planner.end(signal.SIGKILL)
        wait_until(lambda: "silent" in plugin.ready(), plugin.child.tail, 30)
        stack.start_planner()
        asked(stack, plugin, "patient")
        again = plugin.value("registrations_total", {"plugin_id": "patient"})
        assert accepted is not None
        assert again == accepted + 1.0
        stack.want(31)
        never_decided(stack, 31)
