import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wattline.agent.brake import BrakeCall, Braked, BrakeSwitch
from wattline.agent.device_calls import Order, Readings, Written, carry_out, take_readings
from wattline.agent.lanes import Lane, LaneEvent
from wattline.drivers.gpu.device import GpuDevice, GpuFault
from wattline.drivers.gpu.simulated import SimulatedDriver, SimulatedNode

H100 = "NVIDIA H100 80GB HBM3"
DEADLINE_S = 20.0


class Gate:
    """Delays of the simulated node: every delayed call waits until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()

    def __call__(self, seconds: float) -> None:
        self.entered.set()
        assert self.opened.wait(DEADLINE_S)


@contextmanager
def lanes(
    count: int = 1,
) -> Iterator[tuple[SimulatedNode, Gate, list[Lane], Callable[[], LaneEvent]]]:
    gate = Gate()
    node = SimulatedNode([H100] * count, wait=gate)
    events: queue.SimpleQueue[LaneEvent] = queue.SimpleQueue()
    made = [
        Lane(device, post=events.put, now=time.monotonic)
        for device in SimulatedDriver(node).enumerate()
    ]
    try:
        yield node, gate, made, lambda: events.get(timeout=DEADLINE_S)
    finally:
        gate.opened.set()
        assert all(lane.close(DEADLINE_S) for lane in made)


def order(serial: int, watts: float | None, brakes: int = 0) -> Order:
    return Order(serial=serial, brakes=brakes, watts=watts)


def hang(node: SimulatedNode, gate: Gate, lane: Lane) -> None:
    """Let the lane hang in a reading."""
    node.delay(lane.uuid, 1.0, "enforced_w")
    lane.read()
    assert gate.entered.wait(DEADLINE_S)
    with node.changing(lane.uuid) as gpu:
        gpu.delays_s.clear()


def written(event: LaneEvent) -> Written:
    assert isinstance(event, Written)
    return event


def test_an_order_is_written_and_read_back() -> None:
    with lanes() as (node, _, [lane], result):
        lane.order(order(1, 400.0))
        done = written(result())
        assert (done.order.serial, done.enforced_w, done.requested_w) == (1, 400.0, 400.0)
        assert done.error is done.write_error is None
        assert node.gpus[0].writes == [400.0]


def test_of_orders_that_wait_the_newest_wins() -> None:
    with lanes() as (node, gate, [lane], result):
        hang(node, gate, lane)
        for serial, watts in enumerate((600.0, 500.0, 300.0), start=1):
            lane.order(order(serial, watts))
        gate.opened.set()
        assert isinstance(result(), Readings)
        assert written(result()).order.serial == 3
        assert node.gpus[0].writes == [300.0]


def test_writes_go_before_readings() -> None:
    with lanes() as (node, gate, [lane], result):
        hang(node, gate, lane)
        lane.read(facts=True)
        lane.order(order(1, 300.0))
        gate.opened.set()
        result()
        assert isinstance(result(), Written)
        last = result()
        assert isinstance(last, Readings)
        assert last.facts is not None
        assert last.facts.default_w == 700.0


def test_a_brake_goes_first_and_drops_orders_from_before_it() -> None:
    with lanes() as (node, gate, [lane], result):
        hang(node, gate, lane)
        lane.order(order(1, 600.0))
        lane.brake(200.0, count=1)
        lane.order(order(2, 650.0, brakes=0))
        lane.order(order(3, 300.0, brakes=1))
        gate.opened.set()
        result()
        first, second = written(result()), written(result())
        assert first.braking
        assert (second.order.serial, second.braking) == (3, False)
        assert node.gpus[0].writes == [200.0, 300.0]


def test_a_gpu_that_hangs_shows_it_and_delays_no_other() -> None:
    with lanes(2) as (node, gate, [hung, other], result):
        hang(node, gate, hung)
        assert hung.busy_since_s is not None
        other.order(order(1, 400.0))
        assert written(result()).uuid == other.uuid
        assert not hung.close(0.01)


def test_a_brake_is_carried_out_even_when_the_lane_is_closing() -> None:
    with lanes() as (node, gate, [lane], result):
        hang(node, gate, lane)
        lane.brake(200.0, count=1)
        assert not lane.close(0.01)
        gate.opened.set()
        result()
        assert written(result()).braking
        assert node.gpus[0].writes == [200.0]


def test_a_new_handle_is_used_from_the_next_job_on() -> None:
    with lanes() as (node, _, [lane], result):
        node.reload()
        lane.read()
        stale = result()
        assert isinstance(stale, Readings)
        assert stale.error is not None
        assert stale.error.fault is GpuFault.STALE_HANDLE
        lane.replace_device(SimulatedDriver(node).enumerate()[0])
        lane.read()
        fresh = result()
        assert isinstance(fresh, Readings)
        assert fresh.enforced_w == 700.0


def test_the_switch_brakes_all_lanes_before_it_tells_the_loop() -> None:
    with lanes(3) as (node, _, made, result):
        told: queue.SimpleQueue[Braked] = queue.SimpleQueue()
        switch = BrakeSwitch(told.put)
        switch.set_targets(tuple((lane, 210.0 + index) for index, lane in enumerate(made)))
        switch.call(BrakeCall(trigger="signal", by="SIGUSR1"))
        switch.start()
        assert told.get(timeout=DEADLINE_S).count == 1
        for _ in made:
            assert written(result()).braking
        assert [gpu.writes for gpu in node.gpus] == [[210.0], [211.0], [212.0]]
        switch.close()


def device() -> tuple[SimulatedNode, GpuDevice]:
    node = SimulatedNode([H100])
    return node, SimulatedDriver(node).enumerate()[0]


def test_a_write_that_fails_is_read_back_all_the_same() -> None:
    node, gpu = device()
    node.fail(node.gpus[0].uuid, GpuFault.NO_PERMISSION, "write_limit")
    done = carry_out(gpu, "GPU-a", order(1, 400.0), braking=False, now=time.monotonic)
    assert done.enforced_w == 700.0
    assert done.write_error is not None
    assert done.write_error.fault is GpuFault.NO_PERMISSION


def test_a_clock_that_cannot_be_set_does_not_stop_the_limit() -> None:
    node, gpu = device()
    node.fail(node.gpus[0].uuid, GpuFault.NOT_SUPPORTED, "lock_clocks")
    wanted = Order(serial=1, brakes=0, watts=400.0, clock_mhz=1200)
    done = carry_out(gpu, "GPU-a", wanted, braking=False, now=time.monotonic)
    assert done.enforced_w == 400.0
    assert done.clock_error is not None


def test_a_quantity_that_fails_is_named_and_the_others_are_read() -> None:
    node, gpu = device()
    node.fail(node.gpus[0].uuid, GpuFault.UNKNOWN, "draw_w")
    readings = take_readings(gpu, "GPU-a", facts=True, brakes=0, now=time.monotonic)
    assert readings.draw_w is None
    assert readings.enforced_w == 700.0
    assert len(readings.missing) == 1
    assert "draw_w" in readings.missing[0]


def test_a_limit_that_cannot_be_is_an_error() -> None:
    class Wild:
        def __getattr__(self, name: str) -> Callable[..., float]:
            return lambda *_: float("nan")

    readings = take_readings(Wild(), "GPU-a", facts=False, brakes=0, now=time.monotonic)  # type: ignore[arg-type]
    assert readings.error is not None
    assert readings.enforced_w is None


def test_a_bug_in_a_driver_costs_one_reading_only() -> None:
    class Broken:
        def __getattr__(self, name: str) -> Callable[..., float]:
            def call() -> float:
                raise RuntimeError("a bug")

            return call

        def enforced_w(self) -> float:
            return 400.0

    readings = take_readings(Broken(), "GPU-a", facts=False, brakes=0, now=time.monotonic)  # type: ignore[arg-type]
    assert readings.enforced_w == 400.0
    assert len(readings.missing) == 5


class SlowLane(Lane):
    """A lane to which a brake takes its time to come."""

    coming: threading.Event
    let_in: threading.Event

    def brake(self, watts: float, count: int) -> None:
        self.coming.set()
        assert self.let_in.wait(DEADLINE_S)
        super().brake(watts, count)


def test_a_brake_on_its_way_never_undoes_a_lowering_ordered_meanwhile() -> None:
    node = SimulatedNode([H100])
    events: queue.SimpleQueue[LaneEvent] = queue.SimpleQueue()
    [device] = SimulatedDriver(node).enumerate()
    lane = SlowLane(device, post=events.put, now=time.monotonic)
    lane.coming, lane.let_in = threading.Event(), threading.Event()
    told: queue.SimpleQueue[Braked] = queue.SimpleQueue()
    switch = BrakeSwitch(told.put)
    switch.start()

    def lower() -> None:
        """As the loop does it, which knows of no brake yet."""
        switch.set_targets(((lane, 250.0),))
        lane.order(order(1, 250.0, brakes=0))

    loop = threading.Thread(target=lower)
    try:
        switch.set_targets(((lane, 300.0),))
        switch.call(BrakeCall(trigger="signal", by="test"))
        assert lane.coming.wait(DEADLINE_S)
        loop.start()
        loop.join(0.05)
        assert node.gpus[0].writes == []
        lane.let_in.set()
        loop.join(DEADLINE_S)
        assert told.get(timeout=DEADLINE_S).targets == {lane.uuid: 300.0}
        events.get(timeout=DEADLINE_S)
        lane.order(order(2, 250.0, brakes=1))
        events.get(timeout=DEADLINE_S)
        assert node.gpus[0].writes == [300.0, 250.0]
    finally:
        lane.let_in.set()
        switch.close()
        assert lane.close(DEADLINE_S)
