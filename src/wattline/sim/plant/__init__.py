"""The serving and GPU plant: a request-level, discrete-event simulation of a fleet."""

from wattline.sim.plant.config import LimiterNoise, PlantConfig, Routing
from wattline.sim.plant.outcomes import DemandCounters, Totals
from wattline.sim.plant.plant import GpuColumns, Plant, PoolCounters
from wattline.sim.plant.power import PowerSamples

__all__ = [
    "DemandCounters",
    "GpuColumns",
    "LimiterNoise",
    "Plant",
    "PlantConfig",
    "PoolCounters",
    "PowerSamples",
    "Routing",
    "Totals",
]
