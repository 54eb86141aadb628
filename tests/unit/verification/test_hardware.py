"""The explored GPU: who answers for which level, and for how long."""

from wattline.verification.hardware import Hardware, Origin


def test_a_lowered_limit_is_drawn_until_it_has_settled() -> None:
    gpu = Hardware(0, 300.0, 300.0).enforce(100.0, Origin.OURS, settle=2)
    assert (gpu.enforced_w, gpu.booked_for_w, gpu.most_draw_w) == (100.0, 300.0, 300.0)
    assert gpu.tick().booked_for_w == 300.0
    assert gpu.tick().tick().booked_for_w == 100.0


def test_what_an_outsider_raised_must_be_booked_once_it_was_reported() -> None:
    gpu = Hardware(0, 100.0, 100.0).enforce(300.0, Origin.OUTSIDE, settle=1)
    assert (gpu.booked_for_w, gpu.most_draw_w) == (0.0, 300.0)
    assert gpu.told(100.0).booked_for_w == 0.0
    assert gpu.told(300.0).booked_for_w == 300.0
    assert gpu.told(300.0).forgotten().booked_for_w == 0.0


def test_a_repair_leaves_the_outsider_to_answer_for_what_still_lags() -> None:
    gpu = Hardware(0, 100.0, 100.0).enforce(300.0, Origin.OUTSIDE, settle=1)
    repaired = gpu.enforce(100.0, Origin.OURS, settle=1)
    assert (repaired.booked_for_w, repaired.most_draw_w) == (100.0, 300.0)


def test_the_end_of_a_clamp_gives_back_what_was_asked_for() -> None:
    clamped = Hardware(0, 300.0, 300.0).clamp(None, 100.0, settle=1)
    assert clamped.enforced_w == 100.0
    free = clamped.clamp(None, None, settle=1)
    assert (free.enforced_w, free.origin) == (300.0, Origin.OURS)
    rival = clamped.enforce(200.0, Origin.OUTSIDE, settle=1).clamp(None, None, settle=1)
    assert (rival.enforced_w, rival.origin) == (200.0, Origin.OUTSIDE)


def test_a_clamp_upwards_is_an_outsiders_doing() -> None:
    clamped = Hardware(0, 100.0, 100.0).clamp(200.0, None, settle=1)
    assert (clamped.enforced_w, clamped.origin) == (200.0, Origin.OUTSIDE)
    assert clamped.enforce(100.0, Origin.OURS, settle=1).enforced_w == 200.0
