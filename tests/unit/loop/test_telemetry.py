from __future__ import annotations

from wattline.sim.plant.outcomes import DemandCounters
from wattline.sim.telemetry import Load, MetricsState, Reading, Telemetry


def telemetry(delay_s: float = 1.0) -> Telemetry:
    return Telemetry(
        delay_s=delay_s,
        power_noise=0.0,
        seed=1,
        shape=(1, 1, 2),
        future_rps=None,
        future_step_s=1.0,
    )


def reading(time_s: float, arrivals: int) -> Reading:
    counters = DemandCounters(
        window_s=1.0,
        arrivals=arrivals,
        input_tokens_sum=100 * arrivals,
        cached_tokens_sum=0,
        completions=arrivals,
        output_tokens_sum=10 * arrivals,
        rejected=0,
        ttft_s=(0.1, 0.2),
        itl_s=(0.01,),
    )
    return Reading(
        time_s=time_s, counters=(counters,), loads=(Load(10.0, 20.0, 1.0),), draw_w=(300.0, 310.0)
    )


def test_nothing_is_missing_and_not_zero() -> None:
    seen = telemetry().see(0.0)
    assert seen.demand[0].arrivals is None
    assert seen.draw_w == (None, None)
    assert seen.missing


def test_a_reading_shows_when_it_is_old_enough_and_windows_add_up() -> None:
    source = telemetry(delay_s=2.0)
    for second in range(1, 6):
        source.add(reading(float(second), second))
    seen = source.see(5.0)
    assert seen.demand[0].arrivals == 1 + 2 + 3
    assert seen.demand[0].window_s == 3.0
    assert seen.demand[0].age_s == 2.0
    assert seen.demand[0].ttft_p50_s == 0.15
    assert source.see(6.0).demand[0].arrivals == 4


def test_an_outage_hides_everything_and_what_was_counted_is_lost() -> None:
    source = telemetry()
    source.add(reading(1.0, 5))
    assert source.see(2.0).demand[0].arrivals == 5
    source.state = MetricsState.OUTAGE
    source.add(reading(2.0, 7))
    seen = source.see(3.0)
    assert seen.demand[0].arrivals is None
    assert seen.demand[0].age_s == 2.0
    source.state = MetricsState.FINE
    source.add(reading(3.0, 9))
    assert source.see(4.0).demand[0].arrivals == 9


def test_nan_reads_as_missing() -> None:
    source = telemetry()
    source.add(reading(1.0, 5))
    source.state = MetricsState.NAN
    seen = source.see(2.0)
    assert seen.demand[0].arrivals is None
    assert "NaN" in seen.missing[0]


def test_stale_values_repeat_with_their_age() -> None:
    source = telemetry()
    source.add(reading(1.0, 5))
    source.see(2.0)
    source.state = MetricsState.STALE
    source.add(reading(2.0, 7))
    seen = source.see(9.0)
    assert seen.demand[0].arrivals == 5
    assert seen.demand[0].age_s == 8.0
    assert seen.missing
