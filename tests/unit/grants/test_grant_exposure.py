"""Exposure: what puts watts above the budget is booked, counted and named, and stops raises."""

from __future__ import annotations

from ledger_fixtures import acted, granted, introduce, known_ledger, report

from wattline.grants.answers import Refusal
from wattline.grants.book import GpuLimits
from wattline.grants.exposure import Cause, Exposure
from wattline.grants.ledger import Ledger


def test_a_rival_writer_is_booked_as_found_and_named() -> None:
    ledger = known_ledger()
    hold = granted(ledger.grant(1, 500.0, now_s=0.0))
    ledger.on_report(acted(hold, 2, enforced_w=650.0), now_s=1.0)
    assert ledger.booked_w(1) == 650.0
    assert ledger.exposure_w == 150.0
    assert ledger.found_above_w == {1: 150.0}
    assert ledger.exposures == (Exposure(Cause.FOUND_ABOVE, 150.0, 1),)
    assert isinstance(ledger.grant(0, 501.0, now_s=1.0), Refusal)
    repaired = granted(ledger.grant(1, 500.0, now_s=1.0))
    ledger.on_report(acted(repaired, 3), now_s=2.0)
    ledger.advance(4.0)
    assert not ledger.exposures
    assert ledger.found_above_w == {}


def test_a_node_back_at_its_default_limit_is_told_apart() -> None:
    ledger = known_ledger()
    ledger.on_report(report(0, 0, 1, 700.0, incarnation=9), now_s=1.0)
    assert ledger.exposures == (Exposure(Cause.AT_DEFAULT, 200.0, 0),)


def test_what_could_come_up_at_default_limits_is_known_beforehand() -> None:
    limits = {
        gpu: GpuLimits(200.0, 700.0, 2.0, default_w=650.0, node=f"n{gpu // 2}") for gpu in range(4)
    }
    ledger = Ledger(limits, 2000.0, 0.0)
    for gpu, watts in enumerate((300.0, 300.0, 500.0, 700.0)):
        introduce(ledger, gpu, watts)
    assert ledger.reboot_exposure_w(0) == 0.0
    assert ledger.reboot_exposure_w(1) == 700.0
    assert ledger.reboot_exposure_w(5) == 850.0


def test_a_budget_cut_is_exposure_and_stops_raises() -> None:
    ledger = known_ledger()
    ledger.set_budget(900.0, 100.0, now_s=1.0)
    assert ledger.exposures == (Exposure(Cause.CUT, 200.0),)
    lower = granted(ledger.grant(0, 300.0, now_s=1.0))
    ledger.on_report(acted(lower, 2), now_s=2.0)
    assert ledger.exposure_w == 200.0
    ledger.advance(4.0)
    assert ledger.exposure_w == 0.0
    assert isinstance(ledger.grant(1, 501.0, now_s=5.0), Refusal)


def test_an_announced_cut_stops_raises_at_once_and_is_judged_when_it_takes_effect() -> None:
    ledger = known_ledger(budget_w=1300.0)
    ledger.set_budget(900.0, 100.0, now_s=1.0, effective_s=30.0)
    assert ledger.usable_w == 800.0
    assert isinstance(ledger.grant(0, 501.0, now_s=1.0), Refusal)
    assert ledger.exposure_w == 0.0
    ledger.advance(30.0)
    assert ledger.exposure_w == 200.0


def test_an_announced_rise_may_be_used_when_it_takes_effect() -> None:
    ledger = known_ledger()
    ledger.set_budget(1300.0, 100.0, now_s=1.0, effective_s=30.0)
    assert isinstance(ledger.grant(0, 600.0, now_s=29.0), Refusal)
    assert granted(ledger.grant(0, 600.0, now_s=30.0))
