"""The configurations that the protocol is explored in.

Loss, repetition and reordering are always on. Each kind of fault is explored on two nodes that
share a budget of which one of them can be at its largest limit; pairs of faults on one node with
watts to spare, where every state is still visited with the plan changing in between.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wattline.verification.bounds import Bounds, Fault

ONE_NODE: dict[str, Any] = {"nodes": 1, "plans": ((100.0,), (300.0,))}
"""One node, one GPU, and watts for its largest limit."""
HANDOVERS = frozenset({Fault.HANDOVER, Fault.HANDOVER_NO_LOG})
STEADY = frozenset({Fault.BUDGET_CUT, Fault.GPU_REPLACED}) | HANDOVERS
"""Faults that two nodes meet under one plan. A cut and a new GPU set off lowerings and raises of
their own; hand-overs while the plan changes are explored on one node."""
CLOCKS = frozenset({Fault.COORDINATOR_CLOCK_FAST, Fault.NODE_CLOCK_FAST})
PAIRS = (
    (Fault.NODE_CRASH, Fault.COORDINATOR_CRASH),
    (Fault.NODE_CRASH, Fault.BRAKE),
    (Fault.NODE_CRASH, Fault.RIVAL_WRITE),
    (Fault.NODE_CRASH, Fault.CLAMPED_DOWN),
    (Fault.RIVAL_WRITE, Fault.COORDINATOR_CRASH),
    (Fault.DRIVER_RELOAD, Fault.BRAKE),
    (Fault.HANDOVER, Fault.COORDINATOR_CRASH),
)


def single_faults() -> tuple[Bounds, ...]:
    """Each kind of fault once, on two nodes."""
    return tuple(
        [
            Bounds(
                fault.value,
                replans=0 if fault in STEADY else 1,
                in_flight=1,
                margin_ticks=1 if fault in CLOCKS else 0,
                faults={fault: 1},
                most_faults=1,
            )
            for fault in Fault
        ]
    )


def more() -> tuple[Bounds, ...]:
    """The network alone, two GPUs on a node, leases, hand-overs while the plan changes, pairs."""
    base = Bounds("the network alone", in_flight=2, replans=2)
    lease: dict[str, Any] = {"lease_ticks": 1, "expiry_w": 100.0}
    alone = [
        Bounds("leases end", in_flight=1, **ONE_NODE, **lease),
        *[
            Bounds(f"{fault.value}, new plan", in_flight=1, faults={fault: 1}, **ONE_NODE)
            for fault in sorted(HANDOVERS)
        ],
        *[
            Bounds(
                f"{first.value} + {second.value}",
                in_flight=1,
                faults={first: 1, second: 1},
                **ONE_NODE,
            )
            for first, second in PAIRS
        ],
    ]
    one_of_two = replace(base, name="two GPUs on one node", nodes=1, gpus_per_node=2)
    two_of_two = Bounds(
        "two nodes of two GPUs",
        gpus_per_node=2,
        plans=((100.0, 100.0, 100.0, 300.0), (100.0, 300.0, 100.0, 100.0)),
        budget_w=650.0,
        in_flight=1,
    )
    return (base, replace(one_of_two, in_flight=1), two_of_two, *alone)


def configurations() -> tuple[Bounds, ...]:
    """All of them, those that take longest first."""
    slow = (Fault.NODE_REBOOT, Fault.COORDINATOR_CRASH_LOG_LOST, Fault.CLAMPED_DOWN)
    singles = {bounds.name: bounds for bounds in single_faults()}
    first = [singles.pop(fault.value) for fault in slow]
    return (*first, *singles.values(), *more())
