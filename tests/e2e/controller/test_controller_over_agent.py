"""`wattline run` over the real agent on a virtual node: a cut, a kill, a restart, a replay."""

from __future__ import annotations

import signal
import subprocess

from governed_node import DEADLINE_S, WATTLINE, GovernedNode
from wattline.recording.record import Recording
from wattline.sim.replay import replay

pytest_plugins = ("virtual_fixtures",)

RUN = (*WATTLINE, "run")


def test_a_cut_holds_through_a_kill_and_a_restart(governed_node: GovernedNode) -> None:
    place = governed_node
    assert place.enforced_w() == 8 * 700.0
    place.start_controller()
    place.until(lambda: place.enforced_w() <= 3920.0, "4,000 W enforced")
    place.until(lambda: place.state()["budget"]["booked_w"] <= 3920.0, "4,000 W booked")
    place.post("budget", total_w=2800.0)
    place.until(lambda: place.enforced_w() <= 2744.0, "2,800 W enforced")
    place.until(lambda: place.state()["budget"]["booked_w"] <= 2744.0, "2,800 W booked")
    held_w = place.enforced_w()

    place.end_controller(signal.SIGKILL)
    place.start_controller()
    state = place.state()
    # The cut and what was granted outlive the kill: nothing is booked at its largest limit.
    assert state["budget"]["total_w"] == 2800.0
    assert state["budget"]["booked_w"] <= 2744.0
    assert place.enforced_w() == held_w
    assert state["tick"] > 1
    first = state["tick"]
    place.until(lambda: place.state()["tick"] > first + 10, "ten more ticks")
    assert place.enforced_w() <= 2744.0

    place.post("budget", clear=True)
    place.until(lambda: place.state()["budget"]["cause"] == "configuration", "the old budget")
    place.configure(budget={"total_w": 2500.0})
    place.controller.send_signal(signal.SIGHUP)
    place.until(lambda: place.enforced_w() <= 2450.0, "the configuration read again")
    place.until(lambda: "budget.total_w" in place.state()["reload"], "a line on the reload")
    place.configure(budget={"total_w": 2500.0}, tick_s=0.3)
    place.controller.send_signal(signal.SIGHUP)
    place.until(lambda: "tick_s" in place.state()["reload"], "a refusal that names the key")

    place.post("hold", for_s=3600)
    place.until(lambda: place.state()["orders"], "an order in force")
    assert {pool["reason"] for pool in place.state()["pools"]} == {"operator_hold"}

    assert place.end_controller() == 0
    assert place.enforced_w() <= 2450.0
    outcome = replay(Recording(place.folder / "controller" / "recording"))
    assert outcome.difference is None
    assert outcome.decisions > 20
    assert len(outcome.notes) == 1, "the segment of the controller that was killed is not closed"


def test_check_config_says_what_there_is_and_what_is_wrong(governed_node: GovernedNode) -> None:
    place = governed_node
    good = subprocess.run(
        [*RUN, "--config", str(place.config), "--check-config"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert "8 GPUs" in good.stdout
    place.configure(budget={"total_w": 40.0})
    bad = subprocess.run(
        [*RUN, "--config", str(place.config), "--check-config"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert bad.returncode == 2
    assert "budget.total_w" in bad.stderr
    assert len(bad.stderr.splitlines()) == 1
