"""A live stack with two nodes, two frontends, Prometheus and the plugin: by name, and to its end.

Needs Dynamo's environment; skipped with a reason where it is not built.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from wattline.core.errors import InputError
from wattline.live import environment, prometheus_server
from wattline.live.demo_plan import own_scenario
from wattline.live.stack import LiveStack
from wattline.live.stack_process import marked
from wattline.live.stack_spec import StackSpec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("dynamo"),
    pytest.mark.skipif(
        environment.find() is None,
        reason=f"Dynamo {environment.RELEASE} is not built in {environment.default_home()}: "
        "`python -m wattline.live.environment` builds it (0.7 GB, about a minute)",
    ),
    pytest.mark.skipif(
        shutil.which("cc") is None, reason="needs a C compiler for the virtual NVML library"
    ),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a unix socket's name may have 108 characters."""
    made = Path(tempfile.mkdtemp(prefix="stack-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


CUT_W = 2000.0  # of 3,200 W; 1,600 W is the least that the eight GPUs may have


def spec() -> StackSpec:
    deployment = own_scenario().deployments[0]
    pools = [pool.model_copy(update={"startup_s": 1.0}) for pool in deployment.pools]
    return StackSpec(
        deployment=deployment.model_copy(update={"pools": pools}),
        budget_w=3200.0,
        nodes=2,
        frontends=2,
        plugin=True,
    )


def targets_up(stack: LiveStack) -> dict[str, int]:
    """Targets that answer, per job."""
    status, body = stack.get(f"{stack.urls['prometheus']}/api/v1/query?query=sum+by+(job)(up)")
    assert status == 200
    found = json.loads(body)["data"]["result"]
    return {each["metric"]["job"]: int(each["value"][1]) for each in found}


def plugin_lacks(stack: LiveStack) -> bytes:
    """What keeps the plugin from being in force."""
    return stack.get(f"{stack.urls['plugin']}/readyz")[1].strip()


def test_a_stack_is_handled_by_name_and_leaves_nothing(folder: Path) -> None:
    with LiveStack(folder / "s", spec(), environment.require()) as stack:
        mark = stack.processes.mark
        stack.ready()
        assert stack.frontends == ("frontend-1", "frontend-2")
        assert stack.agents == ("agent-node-1", "agent-node-2")
        assert {note.pool for note in stack.workers()} == {"prefill", "decode"}
        stack.watts.observe()
        # It has the controller's plan; a planner is not part of the stack.
        stack.until(lambda: plugin_lacks(stack) == b"planner: has not called yet", "the plugin")
        if prometheus_server.find_binary() is None:
            assert stack.prometheus_missing == prometheus_server.MISSING
        else:
            stack.until(lambda: targets_up(stack).get("workers", 0) >= 4, "workers' pages")
            assert targets_up(stack)["frontends"] == 2

        stack.kill("controller")
        assert not stack.alive("controller")
        assert stack.ask("frontend-2") == 200, "workers serve without it"
        stack.start("controller")
        stack.kill("frontend-1")
        stack.restart("frontend-1")
        stack.stop("agent-node-2")
        stack.resume("agent-node-2")
        stack.ready()
        lost = next(note for note in stack.workers() if note.pool == "decode")
        stack.kill(lost.replica)
        stack.until(lambda: not stack.alive(lost.replica), "the end of a worker")
        stack.until(
            lambda: any(note.pool == "decode" for note in stack.workers()), "another worker"
        )
        stack.until(lambda: stack.watts.enforced_w() > CUT_W, "watts for those that serve")
        stack.set_budget(CUT_W, why="a cut")
        stack.until(stack.watts.within, "the cut")
        with pytest.raises(InputError, match="use one of frontend-1"):
            stack.kill("nobody")
        verdict = stack.watts.verdict()
        assert verdict.ours_watt_seconds == 0.0
        assert verdict.changes > 0
    assert marked(mark) == []


def test_a_start_that_fails_leaves_nothing(folder: Path) -> None:
    (folder / "s" / "grants").mkdir(parents=True)
    stack = LiveStack(folder / "s", spec(), environment.require())
    with pytest.raises(FileExistsError), stack:
        pass
    assert marked(stack.processes.mark) == []
