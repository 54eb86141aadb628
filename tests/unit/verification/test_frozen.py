"""A machine survives being frozen and thawed, and comes back with nothing shared."""

import pytest

from wattline.grants.book import GpuLimits
from wattline.grants.coordinator import Coordinator
from wattline.grants.ledger import Ledger
from wattline.grants.messages import Grant, Report
from wattline.verification.frozen import freeze, thaw
from wattline.verification.machines import GpuKey, swap_nodes

A, B = GpuKey(0, 0), GpuKey(1, 0)


def coordinator() -> Coordinator[GpuKey]:
    limits = GpuLimits(100.0, 300.0, 2.0)
    made: Coordinator[GpuKey] = Coordinator(Ledger({A: limits, B: limits}, 700.0, 50.0))
    report = Report(
        gpu=A,
        incarnation=1,
        epoch=0,
        sequence=0,
        report_sequence=1,
        enforced_w=300.0,
        held_w=300.0,
    )
    assert made.on_report(report, 1.0)
    assert isinstance(made.grant(A, 200.0, 1.0), Grant)
    return made


def test_thawed_machine_is_equal_and_apart() -> None:
    first = coordinator()
    second = thaw(freeze(first))
    assert second.freeze() == first.freeze()
    assert freeze(second) == freeze(first)
    second.grant(A, 150.0, 2.0)
    assert second.freeze() != first.freeze()


def test_swapping_nodes_renames_books_and_messages() -> None:
    swapped = swap_nodes(coordinator(), (1, 0))
    assert swapped.ledger.gpus == (A, B)
    newest = swapped.ledger.newest_grant(B)
    assert newest is not None
    assert newest.gpu == B
    assert swapped.ledger.newest_grant(A) is None
    assert swap_nodes(swapped, (1, 0)).freeze() == coordinator().freeze()


def test_what_is_not_data_is_refused() -> None:
    with pytest.raises(TypeError, match="not plain data"):
        freeze({"callback": print})
