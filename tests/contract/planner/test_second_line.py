"""The real planner without its plugin decides what it likes: the enforced limits hold the budget.

Controller and agent are real and run on a virtual node; the plan that the plugin answers from is
the controller's own.
"""

from __future__ import annotations

import json
import signal
import time

import pytest
from planner_stack import DECODE_WORKERS, Stack, wait_until

from governed_node import GovernedNode

pytest_plugins = ("virtual_fixtures",)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

BUDGET_W, GUARD_W = 4000.0, 80.0
LARGEST_W = 8 * 700.0
WANTED = 40


def test_with_the_plugin_killed_the_enforced_limits_hold_the_budget(
    stack: Stack, governed_node: GovernedNode
) -> None:
    node, plan = governed_node, governed_node.folder / "plan.json"
    node.configure(tick_s=0.5, actuation={"plugin_state": {"chat": str(plan)}})
    node.start_controller()
    wait_until(lambda: node.enforced_w() <= BUDGET_W - GUARD_W, node.tail, 60)
    wait_until(plan.exists, node.tail, 30)
    document = json.loads(plan.read_text())
    assert set(document["roles"]) == {"prefill", "decode"}
    assert document["budget_w"] == BUDGET_W
    plugin = stack.plugin(
        plan, "--listen", "127.0.0.1:0", "--id", "second-line", "--stale-s", "15",
        "--register", stack.gateway, "--secret-file", str(stack.folder / "first"),
    )  # fmt: skip
    wait_until(lambda: stack.evaluations("second-line", "at_most") > 2, plugin.child.tail, 60)
    stack.want(WANTED)
    until = stack.ticks() + 4
    wait_until(lambda: stack.ticks() >= until, stack.planner.tail, 60)
    assert WANTED not in stack.decided(), stack.planner.tail()
    assert plugin.value("plan_fault") == 0.0
    age_s = plugin.value("plan_age_seconds")
    assert age_s is not None
    assert age_s < 15.0, "the controller's plan is what the plugin answers from"
    assert plugin.value("verdicts_total", {"code": "held"}) is None, plugin.child.tail()

    plugin.child.end(signal.SIGKILL)
    wait_until(lambda: WANTED in stack.decided(), stack.planner.tail, 30)
    # Its replicas come up on every GPU, and each would draw all that it can.
    for uuid in node.uuids:
        node.virtual.gpus.set_load(uuid, LARGEST_W / len(node.uuids))
    seen_w = []
    end_s = time.monotonic() + 5.0
    while time.monotonic() < end_s:
        seen_w.append(node.enforced_w())
        time.sleep(0.02)
    stack.want(DECODE_WORKERS)
    assert max(seen_w) <= BUDGET_W - GUARD_W
    assert [process.poll() for process in node.processes] == [None, None], node.tail()
