"""What one GPU is asked to do and to say: orders and readings, each in one go, never raising."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from wattline.drivers.gpu.device import GpuDevice, GpuError, GpuFault, LimitRange

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a GPU is to be set to. A watts of None leaves the limit, as clock_mhz None the clocks.

    serial: the number of this order, for its result. brakes: how many brakes of this GPU its maker
    knew of. reset_clocks: take a ceiling of ours away.
    """

    serial: int
    brakes: int
    watts: float | None
    clock_mhz: int | None = None
    reset_clocks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What came of an order. `braking`: of a brake, which has no order of the loop behind it.

    enforced_w: read back after the write; None: `error` says why. write_error, clock_error: that
    call failed, whatever the read back shows.
    """

    uuid: str
    order: Order
    braking: bool
    done_s: float
    enforced_w: float | None
    requested_w: float | None
    error: GpuError | None = None
    write_error: GpuError | None = None
    clock_error: GpuError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What changes seldom; None where the GPU has it not or it could not be read."""

    limits: LimitRange | None
    default_w: float | None
    persistence: bool | None
    mig: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """One pass over a GPU. error: its limit could not be read, and nothing else is meant.

    brakes: how many brakes of this GPU came before it. `facts` is None unless they were asked for.
    missing: quantities whose reading failed, and how.
    """

    uuid: str
    read_s: float
    brakes: int = 0
    enforced_w: float | None = None
    requested_w: float | None = None
    draw_w: float | None = None
    energy_j: float | None = None
    sm_clock_mhz: int | None = None
    throttle_reasons: frozenset[str] = frozenset()
    facts: Facts | None = None
    missing: tuple[str, ...] = ()
    error: GpuError | None = None


def carry_out(
    device: GpuDevice, uuid: str, order: Order, *, braking: bool, now: Callable[[], float]
) -> Written:
    """Write, then read back what is enforced. Failures come back as values."""
    missing: list[GpuError] = []
    write_errors: list[GpuError] = []
    clock_errors: list[GpuError] = []
    watts, clock_mhz = order.watts, order.clock_mhz
    if watts is not None:
        _call(lambda: device.write_limit(watts), write_errors)
    if clock_mhz is not None:
        _call(lambda: device.lock_clocks(clock_mhz), clock_errors)
    elif order.reset_clocks:
        _call(device.reset_clocks, clock_errors)
    # A write that failed may have taken effect all the same: only the read back tells.
    enforced_w = _call(lambda: _plausible(device.enforced_w()), missing)
    return Written(
        uuid=uuid,
        order=order,
        braking=braking,
        requested_w=None if enforced_w is None else _call(device.requested_w, []),
        done_s=now(),
        enforced_w=enforced_w,
        error=_first(missing),
        write_error=_first(write_errors),
        clock_error=_first(clock_errors),
    )


def take_readings(
    device: GpuDevice, uuid: str, *, facts: bool, brakes: int, now: Callable[[], float]
) -> Readings:
    """One pass over what a GPU says; with `facts`, over what changes seldom too."""
    errors: list[GpuError] = []
    enforced_w = _call(lambda: _plausible(device.enforced_w()), errors)
    read_s = now()
    if enforced_w is None:
        return Readings(uuid=uuid, read_s=read_s, brakes=brakes, error=_first(errors))
    missing: list[GpuError] = []
    return Readings(
        uuid=uuid,
        read_s=read_s,
        brakes=brakes,
        enforced_w=enforced_w,
        requested_w=_call(device.requested_w, missing),
        draw_w=_call(device.draw_w, missing),
        energy_j=_call(device.energy_j, missing),
        sm_clock_mhz=_call(device.sm_clock_mhz, missing),
        throttle_reasons=_call(device.throttle_reasons, missing) or frozenset(),
        facts=_read_facts(device, missing) if facts else None,
        missing=tuple(str(error) for error in missing),
    )


def _read_facts(device: GpuDevice, missing: list[GpuError]) -> Facts:
    return Facts(
        limits=_call(device.range, missing),
        default_w=_call(device.default_w, missing),
        persistence=_call(device.persistence_mode, missing),
        mig=_call(device.mig_enabled, missing),
    )


def _call(call: Callable[[], T], errors: list[GpuError]) -> T | None:
    """The call's result, or None and one more entry in `errors`."""
    try:
        return call()
    except GpuError as error:
        errors.append(error)
    except Exception as error:  # A driver's bug must cost one reading, not the GPU's thread.
        text = f"{getattr(call, '__name__', 'call')}: {type(error).__name__}: {error}"
        errors.append(GpuError(GpuFault.UNKNOWN, text))
    return None


def _plausible(watts: float) -> float:
    """A limit as it can be; GpuError for what no GPU enforces."""
    if not 0.0 <= watts < 1e6:
        raise GpuError(GpuFault.UNKNOWN, f"enforced limit: {watts} W cannot be")
    return watts


def _first(errors: list[GpuError]) -> GpuError | None:
    return errors[0] if errors else None
