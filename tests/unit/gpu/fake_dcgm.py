"""A stand-in for DCGM's Python bindings and the host engine behind them, over simulated hardware.

It behaves as DCGM's documentation and the source of its bindings say; no real engine was at hand to
compare it with. Integers that cannot be told are DCGM's blanks, as a real engine's are.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from wattline.drivers.gpu.dcgm_binding import INT32_BLANK, DcgmBinding
from wattline.drivers.gpu.device import GpuError, GpuFault
from wattline.drivers.gpu.simulated import SimulatedGpu, SimulatedNode

BADPARAM, CONNECTION_NOT_VALID = -1, -21

CODES = {
    GpuFault.NO_PERMISSION: -17,
    GpuFault.NOT_SUPPORTED: -6,
    GpuFault.OUT_OF_RANGE: BADPARAM,
    GpuFault.LOST: -18,
    GpuFault.STALE_HANDLE: BADPARAM,
    GpuFault.UNAVAILABLE: -11,
    GpuFault.UNKNOWN: -3,
}


class DCGMError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"DCGM says {value}")
        self.value = value


class Struct(types.SimpleNamespace):
    """A struct whose members are made when first used, as zeros; arrays hold eight."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = [0] * 8 if name == "mWorkloadPowerProfiles" else Struct()
        setattr(self, name, value)
        return value


class FakeEngine:
    """The host engine: ids of its own, groups, a connection that can be cut.

    configs: every configuration that was set, as (UUID, struct). up: it accepts connections.
    """

    def __init__(self, node: SimulatedNode) -> None:
        self.node = node
        self.up = True
        self.connections = 0
        self.valid: set[int] = set()
        self.ids = {place: gpu.uuid for place, gpu in enumerate(node.gpus)}
        self.groups: dict[int, list[int]] = {}
        self.configs: list[tuple[str, Any]] = []
        self.timeouts: list[int] = []
        self.blank: set[str] = set()

    def restart(self) -> None:
        """The engine was restarted: connections are dead, ids follow the present order."""
        self.valid.clear()
        self.renumber([gpu.uuid for gpu in self.node.gpus])

    def renumber(self, uuids: list[str]) -> None:
        self.ids = dict(enumerate(uuids))

    def enter(self, handle: int, gpu_id: int, name: str) -> Any:
        self.check(handle)
        if gpu_id not in self.ids:
            raise DCGMError(BADPARAM)
        return self.node.call(self.ids[gpu_id], name, self.node.enumeration)

    def check(self, handle: int) -> None:
        if not self.up or handle not in self.valid:
            raise DCGMError(CONNECTION_NOT_VALID)

    def ask(self, handle: int, gpu_id: int, name: str, read: Callable[[SimulatedGpu], Any]) -> Any:
        try:
            with self.enter(handle, gpu_id, name) as gpu:
                return read(gpu)
        except GpuError as error:
            raise DCGMError(CODES[error.fault]) from error


class FakeHandle:
    def __init__(self, engine: FakeEngine, **arguments: Any) -> None:
        if not engine.up:
            raise DCGMError(CONNECTION_NOT_VALID)
        engine.connections += 1
        engine.timeouts.append(arguments["timeoutMs"])
        assert arguments["persistAfterDisconnect"] is False
        assert ":" in arguments["ipAddress"]
        self.engine = engine
        self.handle = engine.connections
        engine.valid.add(self.handle)

    def Shutdown(self) -> None:  # noqa: N802 - DCGM's name
        self.engine.check(self.handle)
        self.engine.valid.discard(self.handle)


def fake_binding(engine: FakeEngine, *, version: int = 4) -> DcgmBinding:
    """The four modules, of DCGM 4 or of an older release."""
    structs = types.ModuleType("dcgm_structs")
    constants: dict[str, Any] = {
        "DCGMError": DCGMError,
        "DCGM_OPERATION_MODE_AUTO": 1,
        "DCGM_GROUP_EMPTY": 1,
        "DCGM_CONFIG_POWER_CAP_INDIVIDUAL": 0,
        "DCGM_WORKLOAD_POWER_PROFILE_ARRAY_SIZE": 8,
        "DCGM_FV_FLAG_LIVE_DATA": 1,
        "dcgmDeviceConfig_version2": 0x02000048,
        "c_dcgmGroupEntityPair_t": Struct,
    }
    if version >= 4:
        constants["c_dcgmDeviceConfig_v2"] = Struct
    for name, value in constants.items():
        setattr(structs, name, value)
    fields = types.ModuleType("dcgm_fields")
    fields.DCGM_FE_GPU = 1  # type: ignore[attr-defined]
    pydcgm = types.ModuleType("pydcgm")
    pydcgm.DcgmHandle = lambda **arguments: FakeHandle(engine, **arguments)  # type: ignore[attr-defined]
    return DcgmBinding(pydcgm=pydcgm, agent=fake_agent(engine), structs=structs, fields=fields)


def fake_agent(engine: FakeEngine) -> types.ModuleType:
    agent = types.ModuleType("dcgm_agent")

    def dcgmGetAllDevices(handle: int) -> list[int]:  # noqa: N802
        engine.check(handle)
        return list(engine.ids)

    def dcgmGetDeviceAttributes(handle: int, gpu_id: int) -> Any:  # noqa: N802
        return engine.ask(handle, gpu_id, "attributes", lambda gpu: attributes(engine, gpu))

    def dcgmEntitiesGetLatestValues(  # noqa: N802
        handle: int, entities: list[Any], ids: list[int], flags: int
    ) -> list[Any]:
        assert flags == 1, "the cache holds nothing that nobody watches"
        assert entities[0].entityGroupId == 1
        name, kind, read = FIELDS[ids[0]]
        number = engine.ask(handle, entities[0].entityId, name, read)
        status = -6 if name in engine.blank else 0
        value = Struct(dbl=float(number)) if kind == "d" else Struct(i64=int(number))
        return [Struct(fieldId=ids[0], fieldType=ord(kind), status=status, value=value)]

    def dcgmGroupCreate(handle: int, kind: int, name: str) -> int:  # noqa: N802
        engine.check(handle)
        assert kind == 1
        assert len(name) < 256
        group = max(engine.groups, default=0) + 1
        engine.groups[group] = []
        return group

    def dcgmGroupAddDevice(handle: int, group: int, gpu_id: int) -> None:  # noqa: N802
        engine.check(handle)
        engine.groups[group].append(gpu_id)

    def dcgmGroupDestroy(handle: int, group: int) -> None:  # noqa: N802
        engine.check(handle)
        del engine.groups[group]

    def dcgmStatusPopError(status: list[Any]) -> Any:  # noqa: N802
        return status.pop(0) if status else None

    def dcgmConfigSet(handle: int, group: int, config: Any, status: list[Any]) -> None:  # noqa: N802
        engine.check(handle)
        for gpu_id in engine.groups[group]:
            try:
                with engine.enter(handle, gpu_id, "write_limit") as gpu:
                    set_config(engine, gpu, config)
            except GpuError as error:
                status.append(Struct(gpuId=gpu_id, fieldId=0, status=CODES[error.fault]))
                raise DCGMError(-3) from error

    functions = (
        dcgmGetAllDevices,
        dcgmGetDeviceAttributes,
        dcgmEntitiesGetLatestValues,
        dcgmGroupCreate,
        dcgmGroupAddDevice,
        dcgmGroupDestroy,
        dcgmStatusPopError,
        dcgmConfigSet,
    )
    for function in functions:
        setattr(agent, function.__name__, function)
    agent.dcgmStatusCreate = list  # type: ignore[attr-defined]
    agent.dcgmStatusDestroy = lambda status: None  # type: ignore[attr-defined]
    return agent


def set_config(engine: FakeEngine, gpu: SimulatedGpu, config: Any) -> None:
    """Apply what is not blank, as the engine's configuration manager does."""
    perf = config.mPerfState
    blanks = [
        config.mEccMode,
        config.mComputeMode,
        perf.syncBoost,
        perf.targetClocks.memClock,
        perf.targetClocks.smClock,
        *config.mWorkloadPowerProfiles,
    ]
    assert all(value == INT32_BLANK for value in blanks), "something beside the limit is set"
    watts = config.mPowerLimit.val
    assert isinstance(watts, int), "DCGM takes whole watts"
    if not gpu.product.min_w <= watts <= gpu.product.max_w:
        raise GpuError(GpuFault.OUT_OF_RANGE, f"{watts} W")
    gpu.requested_w = float(watts)
    gpu.writes.append(float(watts))
    engine.configs.append((gpu.uuid, config))


def attributes(engine: FakeEngine, gpu: SimulatedGpu) -> Any:
    def told(name: str, value: float) -> int:
        return INT32_BLANK + 2 if name in engine.blank else int(value)

    return Struct(
        identifiers=Struct(
            uuid="<<<NULL>>>" if "uuid" in engine.blank else gpu.uuid,
            deviceName=gpu.product.name,
            pciBusId="00000000:18:00.0",
            serial="<<<NOT_SUPPORTED>>>",
        ),
        powerLimits=Struct(
            curPowerLimit=told("requested", gpu.requested_w),
            defaultPowerLimit=told("default", gpu.product.default_w),
            enforcedPowerLimit=told("enforced", gpu.enforced_w),
            minPowerLimit=told("range", gpu.product.min_w),
            maxPowerLimit=told("range", gpu.product.max_w),
        ),
        settings=Struct(
            persistenceModeEnabled=told("persistence", gpu.persistence),
            migModeEnabled=told("mig", bool(gpu.mig_uuids)),
        ),
    )


FIELDS: dict[int, tuple[str, str, Callable[[SimulatedGpu], float]]] = {
    100: (
        "sm_clock_mhz",
        "i",
        lambda gpu: gpu.clock_ceiling_mhz or gpu.product.max_sm_clock_mhz,
    ),
    112: ("throttle_reasons", "i", lambda gpu: 0x4 if gpu.load_w > gpu.enforced_w else 0),
    113: ("max_sm_clock_mhz", "i", lambda gpu: gpu.product.max_sm_clock_mhz),
    155: ("draw_w", "d", lambda gpu: gpu.draw_w),
    156: ("energy_j", "i", lambda gpu: gpu.energy_j * 1000),
    164: ("enforced_field", "d", lambda gpu: gpu.enforced_w),
}
