"""Whose doing a change was, and whether an exposure ended in the stated time."""

from __future__ import annotations

import dataclasses

import pytest

from wattline.virtual.judge import CUT_S, REPAIR_S, Known, Verdict, cause_of, judge
from wattline.virtual.observer import Change

AGENT, RIVAL, STRANGER = 11, 22, 33
START = {"a": 400_000, "b": 400_000}


def change(
    at_s: float,
    gpu: str,
    before_mw: int,
    enforced_mw: int,
    cause: str = "nvml",
    pid: int = AGENT,
    requested_mw: int | None = None,
) -> Change:
    requested = enforced_mw if requested_mw is None else requested_mw
    return Change(at_s, "n1", gpu, cause, pid, before_mw, enforced_mw, requested)


def known() -> Known:
    return Known(agents={AGENT}, rivals={RIVAL}, budgets=[(0.0, 1_000_000)])


def verdict(changes: list[Change], told: Known) -> Verdict:
    return judge(changes, told, START, 0.0, 20.0, 0)


def test_what_a_rival_wrote_is_his_and_what_a_stranger_wrote_is_ours() -> None:
    raised = change(1, "a", 400_000, 700_000)
    told = known()
    assert cause_of(raised, told, None) is None
    assert cause_of(dataclasses.replace(raised, pid=RIVAL), told, None) == "rival writer"
    assert cause_of(dataclasses.replace(raised, pid=STRANGER), told, None) is None


@pytest.mark.parametrize("cause", ["reload", "control", "rival"])
def test_an_outside_event_counts_as_one_only_if_it_was_told(cause: str) -> None:
    raised = change(1, "a", 400_000, 700_000, cause, pid=0)
    told = known()
    assert cause_of(raised, told, None) is None
    told.told.append(("driver reload", "n1", (0.9, 1.1)))
    assert cause_of(raised, told, None) == "driver reload"
    assert cause_of(dataclasses.replace(raised, at_s=1.2), told, None) is None
    assert cause_of(dataclasses.replace(raised, node="n2"), told, None) is None


def test_a_driver_that_unloads_after_our_agent_went_is_ours() -> None:
    told = known()
    told.told.append(("driver reload", "n1", (0.0, 9.0)))
    assert cause_of(change(1, "a", 400_000, 700_000, "unload", pid=0), told, None) is None


def test_what_comes_back_when_a_clamp_is_lifted_is_his_who_asked_for_it() -> None:
    told = known()
    down = change(1, "a", 400_000, 250_000, "out_of_band", 0, requested_mw=400_000)
    lifted = change(2, "a", 250_000, 400_000, "out_of_band", 0, requested_mw=400_000)
    found = verdict([down, change(1.5, "b", 400_000, 700_000), lifted], told)
    assert found.ours_watt_seconds == pytest.approx(100 * 18)
    asked = change(1.6, "a", 250_000, 250_000, "nvml", RIVAL, requested_mw=600_000)
    lifted_more = change(2, "a", 250_000, 600_000, "out_of_band", 0, requested_mw=600_000)
    found = verdict([down, change(1.5, "b", 400_000, 700_000), asked, lifted_more], told)
    assert found.ours_watt_seconds == 0.0
    assert [each.kind for each in found.exposures] == ["rival writer"]


def rival_for(seconds: float) -> list[Change]:
    return [
        change(1, "a", 400_000, 700_000, pid=RIVAL),
        change(1 + seconds, "a", 700_000, 400_000),
    ]


def test_a_repair_is_in_time_or_late() -> None:
    (prompt,) = verdict(rival_for(REPAIR_S - 0.1), known()).exposures
    assert (prompt.in_time, prompt.ended, prompt.hindered_by) == (True, True, ())
    assert prompt.over_s == pytest.approx(REPAIR_S - 0.1)
    (late,) = verdict(rival_for(REPAIR_S + 0.1), known()).exposures
    assert not late.in_time


def test_time_in_which_nothing_could_be_done_is_counted_apart() -> None:
    told = known()
    told.hindered["n1"] = [("agent stopped", (1.5, 9.5))]
    told.hindered["n2"] = [("agent down", (0.0, 20.0))]
    (exposure,) = verdict(rival_for(10.0), told).exposures
    assert exposure.over_s == pytest.approx(10.0)
    assert exposure.able_s == pytest.approx(1.5)
    assert exposure.hindered_by == ("agent stopped",)
    assert exposure.in_time


def test_a_raise_before_its_agent_was_up_is_for_the_coordinator_to_mend() -> None:
    told = known()
    told.hindered["n1"] = [("agent down", (0.0, 1.2))]
    told.hindered[None] = [("coordinator down", (0.0, 8.0))]
    (exposure,) = verdict(rival_for(9.0), told).exposures
    assert exposure.able_s == pytest.approx(2.0)
    assert exposure.in_time


def test_a_cut_has_the_time_of_a_cut() -> None:
    told = known()
    told.budgets.append((2.0, 600_000))
    changes = [change(2 + CUT_S + 0.1, "a", 400_000, 200_000)]
    (exposure,) = verdict(changes, told).exposures
    assert (exposure.kind, exposure.node, exposure.in_time) == ("cut", None, False)
    told.hindered["n2"] = [("agent down", (2.5, 3.0))]
    (exposure,) = verdict(changes, told).exposures
    assert exposure.in_time


def test_the_order_of_what_was_seen_on_two_gpus_does_not_matter() -> None:
    changes = [change(2, "b", 400_000, 300_000), change(3, "a", 400_000, 700_000)]
    assert verdict(changes, known()) == verdict(changes[::-1], known())
    assert verdict(changes, known()).ours_watt_seconds == 0.0
    assert verdict(changes, known()).changes == 2


def test_a_raise_that_was_held_up_past_a_cut_is_the_cuts() -> None:
    told = known()
    told.budgets.append((5.0, 800_000))
    raised = [change(7.0, "a", 400_000, 450_000), change(7.5, "a", 450_000, 400_000)]
    assert verdict(raised, told).ours_watt_seconds == pytest.approx(25)
    told.hindered["n1"] = [("hung call GPU-a", (4.0, 6.8))]
    found = verdict(raised, told)
    assert found.ours_watt_seconds == 0.0
    assert [each.kind for each in found.exposures] == ["cut, raise under way"]
    told.hindered["n1"] = [("hung call GPU-a", (5.5, 6.8))]  # began after the cut: it should know
    assert verdict(raised, told).ours_watt_seconds == pytest.approx(25)
    told.hindered["n1"] = [("hung call GPU-a", (4.0, 6.0))]  # ended long before the raise
    assert verdict(raised, told).ours_watt_seconds == pytest.approx(25)
