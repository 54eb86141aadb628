"""Streams of requests as a scenario describes them, and the trace that they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wattline.catalog.yaml_files import StrictModel
from wattline.core.errors import InputError
from wattline.sim import generate
from wattline.sim.faults import Seconds
from wattline.sim.trace_files import read_trace
from wattline.sim.traces import Trace, for_deployment, merge

Rate = Annotated[float, Field(gt=0.0, le=100_000.0)]
Span = Annotated[float, Field(gt=0.0, le=366 * 86_400.0)]

MAX_REQUESTS = 20_000_000
"""Most requests that a generator is asked for: about 1 GB of columns."""


class SwingSpec(StrictModel):
    """A day's swing of the rate, smooth, its mean kept."""

    peak_to_trough: float = Field(ge=1.0, le=1000.0)
    """Highest rate / lowest rate."""
    period_s: float = Field(default=86_400.0, ge=1.0, le=366 * 86_400.0)
    """From peak to peak."""
    peak_at_s: Seconds = 0.0
    """When a peak falls, seconds from the start."""


class SurgeSpec(StrictModel):
    """A crowd that comes and goes."""

    at_s: Seconds
    """When the rate starts to rise."""
    factor: float = Field(gt=0.0, le=1000.0)
    """Rate at its height / rate without the crowd."""
    rise_s: Seconds = 10.0
    """Time to its height."""
    hold_s: Seconds
    """Time at its height."""
    fall_s: Seconds = 60.0
    """Time back to normal."""


class _Stream(StrictModel):
    deployment: str | None = None
    """Deployment that these requests are for; left out: the first."""


class ConversationTraffic(_Stream):
    """Chat traffic with the statistics of the Azure conversation trace of 2023."""

    kind: Literal["conversation"]
    """Always `conversation`."""
    mean_rps: Rate
    """Mean requests per second, surges not counted."""
    swing: SwingSpec | None = None
    """A day's swing."""
    surges: list[SurgeSpec] = Field(default=[], max_length=1000)
    """Crowds."""
    burstiness: float = Field(default=1.0, ge=0.0, le=2.0)
    """How far the rate wanders: 1 as in the trace, 0 a Poisson process."""
    mean_input_tokens: float = Field(default=1155.0, ge=1.0, le=1e6)
    """Mean prompt length; the published distribution is stretched to it."""
    mean_output_tokens: float = Field(default=211.0, ge=1.0, le=1e6)
    """Mean answer length; the published distribution is stretched to it."""


class MixShiftTraffic(_Stream):
    """Traffic whose prefill share of the GPU work swings while the work itself stays level."""

    kind: Literal["mix_shift"]
    """Always `mix_shift`."""
    mean_rps: Rate
    """Mean requests per second."""
    low_share: float = Field(default=0.35, gt=0.0, lt=1.0)
    """Lowest share of prefill in the work."""
    high_share: float = Field(default=0.65, gt=0.0, lt=1.0)
    """Highest share of prefill in the work."""
    period_s: float = Field(default=600.0, ge=1.0, le=86_400.0 * 7)
    """From low to high and back."""
    decode_token_cost: float = Field(gt=0.0, le=1000.0)
    """GPU time of one output token / GPU time of one prompt token, at the operating point."""
    work_units: float = Field(gt=0.0, le=1e7)
    """Mean work of a request, in prompt tokens."""
    burstiness: float = Field(default=1.0, ge=0.0, le=2.0)
    """How far the rate wanders: 1 as in the Azure trace, 0 a Poisson process."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low_share > self.high_share:
            raise ValueError("low_share must not be above high_share")
        return self


class ConstantTraffic(_Stream):
    """Requests of one size at one rate."""

    kind: Literal["constant"]
    """Always `constant`."""
    rate_rps: Rate
    """Requests per second."""
    input_tokens: int = Field(ge=1, le=10_000_000)
    """Prompt tokens of each."""
    output_tokens: int = Field(ge=1, le=10_000_000)
    """Output tokens of each."""
    arrivals: Literal["poisson", "even"] = "poisson"
    """A Poisson process, or evenly spaced."""


class TraceTraffic(_Stream):
    """Requests of a trace file."""

    kind: Literal["trace"]
    """Always `trace`."""
    path: str
    """The file, relative to the scenario file."""
    from_s: Seconds = 0.0
    """Where to start, seconds from the start of the trace."""
    until_s: Span | None = None
    """Where to end."""
    scale_load: float = Field(default=1.0, ge=0.001, le=1000.0)
    """Time is compressed by this factor, which multiplies the load."""


Traffic = Annotated[
    ConversationTraffic | MixShiftTraffic | ConstantTraffic | TraceTraffic,
    Field(discriminator="kind"),
]


def build_stream(
    stream: Traffic, *, seed: int, duration_s: float, scale_load: float, folder: Path
) -> Trace:
    """Build the trace of one stream.

    `scale_load` multiplies the rate of generated traffic and leaves its swings as they are; a trace
    file is compressed in time. Paths are relative to `folder`. InputError for unusable files and
    for more than `MAX_REQUESTS` requests.
    """
    if isinstance(stream, TraceTraffic):
        trace = read_trace(folder / stream.path, seed).cut(stream.from_s, stream.until_s)
        return trace.scaled(stream.scale_load * scale_load)
    rate_rps = scale_load * (
        stream.rate_rps if isinstance(stream, ConstantTraffic) else stream.mean_rps
    )
    if not rate_rps * duration_s <= MAX_REQUESTS:
        raise InputError(
            "traffic", f"{rate_rps * duration_s:.3g} requests", f"at most {MAX_REQUESTS:,} at once"
        )
    if isinstance(stream, ConstantTraffic):
        return generate.constant(
            seed=seed,
            duration_s=duration_s,
            rate_rps=rate_rps,
            input_tokens=stream.input_tokens,
            output_tokens=stream.output_tokens,
            poisson=stream.arrivals == "poisson",
        )
    if isinstance(stream, MixShiftTraffic):
        return generate.mix_shift(
            seed=seed,
            duration_s=duration_s,
            mean_rps=rate_rps,
            burstiness=stream.burstiness,
            shift=generate.MixShift(
                low_share=stream.low_share,
                high_share=stream.high_share,
                period_s=stream.period_s,
                decode_token_cost=stream.decode_token_cost,
                work_units=stream.work_units,
            ),
        )
    swing = stream.swing
    return generate.conversation(
        seed=seed,
        duration_s=duration_s,
        mean_rps=rate_rps,
        swing=None if swing is None else generate.Swing(**swing.model_dump()),
        surges=[generate.Surge(**surge.model_dump()) for surge in stream.surges],
        burstiness=stream.burstiness,
        mean_input_tokens=stream.mean_input_tokens,
        mean_output_tokens=stream.mean_output_tokens,
    )


def build_streams(
    streams: Sequence[Traffic],
    deployments: Sequence[str],
    *,
    seed: int,
    duration_s: float,
    scale_load: float = 1.0,
    folder: Path = Path(),
) -> Trace:
    """Build the trace that all streams add up to; stream i has the seed `seed + 1000 x i`."""
    traces = []
    for number, stream in enumerate(streams):
        trace = build_stream(
            stream,
            seed=seed + 1000 * number,
            duration_s=duration_s,
            scale_load=scale_load,
            folder=folder,
        )
        if len(trace) == 0:
            raise InputError(
                f"traffic[{number}]", "no request", "raise its rate or the scenario's duration_s"
            )
        if stream.deployment is not None:
            trace = for_deployment(trace, deployments.index(stream.deployment))
        traces.append(trace)
    return merge(traces)
