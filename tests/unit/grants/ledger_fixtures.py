"""A ledger whose GPUs are known, and the answers of their nodes."""

from __future__ import annotations

from wattline.grants.answers import Refusal
from wattline.grants.book import GpuLimits
from wattline.grants.ledger import Ledger
from wattline.grants.messages import Grant, Report

LIMITS = GpuLimits(min_w=200.0, max_w=700.0, settle_s=2.0)
INCARNATION = 7


def report(
    gpu: int = 0,
    sequence: int = 0,
    number: int = 1,
    enforced_w: float = 500.0,
    *,
    held_w: float | None = None,
    epoch: int = 1,
    incarnation: int = INCARNATION,
    standing_s: float = 0.0,
    persistence: bool | None = True,
) -> Report[int]:
    return Report(
        gpu=gpu,
        incarnation=incarnation,
        epoch=epoch,
        sequence=sequence,
        report_sequence=number,
        enforced_w=enforced_w,
        held_w=enforced_w if held_w is None else held_w,
        standing_s=standing_s,
        persistence=persistence,
    )


def introduce(
    ledger: Ledger[int],
    gpu: int,
    enforced_w: float,
    *,
    incarnation: int = INCARNATION,
    epoch: int = 1,
    now_s: float = 0.0,
) -> None:
    """Let the node of `gpu` report, be asked, and answer: two exchanges, reports 0 and 1."""
    ledger.on_report(
        report(gpu, 0, 0, enforced_w, incarnation=incarnation, epoch=0, standing_s=60.0), now_s
    )
    adopt = ledger.adopt(gpu)
    assert adopt is not None
    assert adopt.incarnation == incarnation
    ledger.on_report(
        report(
            gpu,
            adopt.sequence,
            1,
            enforced_w,
            incarnation=incarnation,
            epoch=epoch,
            standing_s=60.0,
        ),
        now_s,
    )


def known_ledger(
    gpus: int = 2, budget_w: float = 1100.0, guard_w: float = 100.0, start_w: float = 500.0
) -> Ledger[int]:
    """Return a ledger whose GPUs all stand at `start_w`, settled."""
    ledger = Ledger(dict.fromkeys(range(gpus), LIMITS), budget_w, guard_w)
    for gpu in range(gpus):
        introduce(ledger, gpu, start_w)
    assert ledger.total_booked_w == gpus * start_w
    return ledger


def granted(answer: Grant[int] | Refusal[int]) -> Grant[int]:
    assert isinstance(answer, Grant)
    return answer


def acted(
    grant: Grant[int],
    number: int,
    enforced_w: float | None = None,
    *,
    held_w: float | None = None,
    standing_s: float = 0.0,
) -> Report[int]:
    """Return the report of a node that obeyed `grant`."""
    return report(
        grant.gpu,
        grant.sequence,
        number,
        grant.watts if enforced_w is None else enforced_w,
        held_w=grant.watts if held_w is None else held_w,
        epoch=grant.epoch,
        incarnation=grant.incarnation,
        standing_s=standing_s,
    )
