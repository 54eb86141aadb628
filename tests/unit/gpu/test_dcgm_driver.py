"""The DCGM driver where DCGM is unlike NVML, over a stand-in for its bindings and engine."""

from __future__ import annotations

import sys

import pytest
from fake_dcgm import FakeEngine, fake_binding
from gpu_rigs import FOUR_H100, DcgmRig

from wattline.core.errors import InputError
from wattline.drivers.gpu.dcgm import DcgmDevice, DcgmDriver
from wattline.drivers.gpu.dcgm_binding import INT32_BLANK, field_number
from wattline.drivers.gpu.device import GpuDriver, GpuError, GpuFault
from wattline.drivers.gpu.simulated import SimulatedNode


@pytest.fixture
def rig() -> DcgmRig:
    return DcgmRig()


def first(rig: DcgmRig) -> DcgmDevice:
    device = rig.driver.enumerate()[0]
    assert isinstance(device, DcgmDevice)
    return device


def test_the_handle_is_asked_for_with_a_timeout_of_5_s(rig: DcgmRig) -> None:
    rig.driver.enumerate()
    assert rig.engine.timeouts == [5000]


def test_bindings_of_dcgm_3_are_refused_at_the_start() -> None:
    engine = FakeEngine(SimulatedNode(FOUR_H100))
    with pytest.raises(InputError, match="DCGM 4"):
        DcgmDriver("localhost", binding=fake_binding(engine, version=3))
    assert engine.connections == 0


def test_missing_bindings_are_said_with_where_they_come_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pydcgm", None)
    with pytest.raises(InputError, match="PYTHONPATH"):
        DcgmDriver("localhost")


def test_an_engine_that_cannot_be_reached_is_a_failure_without_fallback(rig: DcgmRig) -> None:
    rig.engine.up = False
    with pytest.raises(GpuError) as caught:
        rig.driver.enumerate()
    assert caught.value.fault is GpuFault.UNAVAILABLE
    assert "localhost:5555" in str(caught.value)
    assert "no fallback" in str(caught.value)


def test_a_cut_connection_is_made_anew_once_and_the_call_repeated(rig: DcgmRig) -> None:
    gpu = first(rig)
    rig.engine.valid.clear()
    gpu.write_limit(400.0)
    assert gpu.enforced_w() == 400.0
    assert rig.engine.connections == 2
    assert rig.engine.groups == {}


def test_an_engine_that_stays_away_is_unavailable_and_comes_back(rig: DcgmRig) -> None:
    gpu = first(rig)
    rig.engine.up = False
    for _ in range(2):
        with pytest.raises(GpuError) as caught:
            gpu.write_limit(400.0)
        assert caught.value.fault is GpuFault.UNAVAILABLE
    rig.engine.up = True
    gpu.write_limit(400.0)
    assert gpu.enforced_w() == 400.0


def test_only_the_limit_is_set_and_in_whole_watts(rig: DcgmRig) -> None:
    gpu = first(rig)
    gpu.write_limit(400.9)
    uuid, config = rig.engine.configs[-1]
    assert uuid == gpu.identity.uuid
    assert config.mPowerLimit.val == 400
    assert config.mWorkloadPowerProfiles == [INT32_BLANK] * 8
    assert config.gpuId == INT32_BLANK


def test_ids_that_moved_are_looked_up_by_uuid_before_a_write(rig: DcgmRig) -> None:
    gpus = rig.driver.enumerate()
    uuids = [gpu.identity.uuid for gpu in gpus]
    rig.engine.renumber([uuids[3], uuids[2], uuids[1], uuids[0]])
    gpus[0].write_limit(300.0)
    assert [rig.enforced_w(uuid) for uuid in uuids] == [300.0, 700.0, 700.0, 700.0]


def test_a_gpu_that_the_engine_no_longer_has_is_lost_and_nothing_is_written(rig: DcgmRig) -> None:
    gpus = rig.driver.enumerate()
    uuids = [gpu.identity.uuid for gpu in gpus]
    rig.engine.renumber(uuids[1:])
    with pytest.raises(GpuError) as caught:
        gpus[0].write_limit(300.0)
    assert caught.value.fault is GpuFault.LOST
    assert rig.engine.configs == []


def test_a_group_does_not_outlive_its_write(rig: DcgmRig) -> None:
    gpu = first(rig)
    gpu.write_limit(400.0)
    rig.refuse_writes(gpu.identity.uuid)
    with pytest.raises(GpuError) as caught:
        gpu.write_limit(300.0)
    assert caught.value.fault is GpuFault.NO_PERMISSION
    assert rig.engine.groups == {}


def test_blanks_are_missing_and_never_numbers(rig: DcgmRig) -> None:
    gpu = first(rig)
    rig.engine.blank |= {"requested", "default", "persistence", "mig", "draw_w", "energy_j"}
    assert gpu.requested_w() is None
    assert gpu.default_w() is None
    assert gpu.persistence_mode() is None
    assert gpu.mig_enabled() is None
    assert gpu.draw_w() is None
    assert gpu.energy_j() is None
    assert gpu.identity.serial is None


def test_a_range_that_is_blank_stops_writes(rig: DcgmRig) -> None:
    gpu = first(rig)
    rig.engine.blank.add("range")
    with pytest.raises(GpuError) as caught:
        gpu.write_limit(400.0)
    assert caught.value.fault is GpuFault.NOT_SUPPORTED
    assert rig.engine.configs == []


def test_an_engine_that_tells_no_uuid_cannot_be_used(rig: DcgmRig) -> None:
    rig.engine.blank.add("uuid")
    with pytest.raises(GpuError, match="no UUID"):
        rig.driver.enumerate()


def test_enforced_watts_keep_the_fraction_that_attributes_drop(rig: DcgmRig) -> None:
    gpu = first(rig)
    rig.rival(gpu.identity.uuid, 350.75)
    assert gpu.enforced_w() == 350.75
    rig.engine.blank.add("enforced_field")
    assert gpu.enforced_w() == 350.0
    rig.engine.blank.add("enforced")
    with pytest.raises(GpuError, match="not reported"):
        gpu.enforced_w()


def test_processes_come_from_nvml_or_are_said_to_be_missing(rig: DcgmRig) -> None:
    gpu = first(rig)
    rig.run(gpu.identity.uuid, [42])
    assert [process.pid for process in gpu.processes()] == [42]
    alone = DcgmDriver("localhost", binding=fake_binding(rig.engine))
    with pytest.raises(GpuError) as caught:
        alone.enumerate()[0].processes()
    assert caught.value.fault is GpuFault.NOT_SUPPORTED


def test_a_missing_nvml_binding_costs_the_processes_only(rig: DcgmRig) -> None:
    def missing() -> GpuDriver:
        raise InputError("GPU driver nvml", "no module", "install it")

    gpu = DcgmDriver("localhost", binding=fake_binding(rig.engine), readings=missing).enumerate()[0]
    with pytest.raises(GpuError, match="install it"):
        gpu.processes()
    gpu.write_limit(400.0)
    assert gpu.enforced_w() == 400.0


@pytest.mark.parametrize(
    ("kind", "number", "expected"),
    [
        ("i", 12, 12.0),
        ("i", 0x7FFFFFF0, None),
        ("i", 0x7FFFFFF2, None),
        ("i", 0x7FFFFFFFFFFFFFF3, None),
        ("i", 0x80000000, float(0x80000000)),
        ("d", 123.5, 123.5),
        ("d", 140737488355328.0, None),
        ("d", 140737488355330.0, None),
    ],
)
def test_field_values_are_read_by_type_and_blanks_dropped(
    kind: str, number: float, expected: float | None
) -> None:
    class Value:
        fieldId = 155  # noqa: N815 - DCGM's names
        fieldType = ord(kind)  # noqa: N815
        status = 0

        class value:  # noqa: N801
            i64 = number
            dbl = number

    assert field_number(Value, "GPU-1") == expected
