"""The GPU products that a virtual node can have, and the mixes of them that have a name.

Limits, idle power, memory, clocks and settle time are those of the catalog's files of the same
names, which give the sources; the catalog needs libraries that a node's tests must not need.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattline.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualProduct:
    """What NVML tells of a product. `idle_w` is the draw without any process."""

    catalog_name: str
    nvml_name: str
    min_limit_w: int
    default_limit_w: int
    max_limit_w: int
    idle_w: int
    memory_bytes: int
    min_clock_mhz: int
    max_clock_mhz: int
    memory_clock_mhz: int
    settle_s: float
    architecture: int
    """NVML_DEVICE_ARCH_*: 9 Hopper, 10 Blackwell."""
    pci_device_id: int


PRODUCTS = {
    "h100": VirtualProduct(
        catalog_name="H100-80GB-HBM3",
        nvml_name="NVIDIA H100 80GB HBM3",
        min_limit_w=200,
        default_limit_w=700,
        max_limit_w=700,
        idle_w=70,
        memory_bytes=85520809984,
        min_clock_mhz=345,
        max_clock_mhz=1980,
        memory_clock_mhz=2619,
        settle_s=2.0,
        architecture=9,
        pci_device_id=0x233010DE,
    ),
    "h200": VirtualProduct(
        catalog_name="H200",
        nvml_name="NVIDIA H200",
        min_limit_w=200,
        default_limit_w=700,
        max_limit_w=700,
        idle_w=75,
        memory_bytes=150754820096,
        min_clock_mhz=345,
        max_clock_mhz=1980,
        memory_clock_mhz=3201,
        settle_s=2.0,
        architecture=9,
        pci_device_id=0x233510DE,
    ),
    "b200": VirtualProduct(
        catalog_name="B200",
        nvml_name="NVIDIA B200",
        min_limit_w=200,
        default_limit_w=1000,
        max_limit_w=1000,
        idle_w=139,
        memory_bytes=192265846784,
        min_clock_mhz=120,  # assumed, like the three that follow: the catalog has no clocks
        max_clock_mhz=1965,
        memory_clock_mhz=3996,
        settle_s=2.0,
        architecture=10,
        pci_device_id=0x290110DE,
    ),
}

MIXED = ("h100", "h100", "h100", "h100", "h200", "h200", "b200", "b200")


def profile(name: str, gpus: int = 8) -> tuple[str, ...]:
    """Products of a node: `h100`, `h200`, `b200`, or `mixed` (4, 2 and 2 of each when 8)."""
    if name == "mixed":
        return tuple(MIXED[i % len(MIXED)] for i in range(gpus))
    if name not in PRODUCTS:
        raise InputError("profile", name, f"use one of {', '.join(PRODUCTS)}, mixed")
    return (name,) * gpus
