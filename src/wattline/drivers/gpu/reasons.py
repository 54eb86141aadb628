"""Names of the reasons why a GPU's clocks are held back."""

from __future__ import annotations

# nvmlClocksEventReasons of nvml.h; DCGM's field 112 carries the same bits.
CLOCK_EVENT_REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}


def reason_names(bits: int) -> frozenset[str]:
    """Name the set bits of a clock-event mask; bits of later releases keep their number."""
    return frozenset(
        CLOCK_EVENT_REASONS.get(1 << place, f"unknown_{1 << place:#x}")
        for place in range(bits.bit_length())
        if bits >> place & 1
    )
