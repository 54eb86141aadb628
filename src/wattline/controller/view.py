"""What one tick leaves for whoever asks: metrics, `/state`, readiness. Immutable."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.controller.admission import FrontendView
from wattline.controller.budget import InForce
from wattline.controller.caps import CapsView
from wattline.controller.history import HistoryView
from wattline.controller.models_view import ModelsView
from wattline.core.decision import Decision
from wattline.core.snapshot import Snapshot
from wattline.recording.orders import Carried
from wattline.recording.segments import RecorderStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node as it was heard last. why: None while its limits are known."""

    name: str
    age_s: float | None
    why: str | None
    mode: str | None
    braked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Sums since the start. refused: grants by reason."""

    ticks: int = 0
    failed_ticks: int = 0
    late_ticks: int = 0
    missing: int = 0
    refused: tuple[tuple[str, int], ...] = ()
    starts: int = 0
    drains: int = 0
    replica_failures: int = 0
    admission_partial_failures: int = 0
    prefill_thresholds_untold: int = 0
    reloads_refused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TickView:
    """The newest tick. made_s: monotonic; took_s: of the whole tick.

    decision and carried are None while none could be made. problems: what needs a person. notes: of
    the last reload.
    """

    made_s: float
    took_s: float
    advisory: bool
    budget: InForce
    snapshot: Snapshot
    decision: Decision | None
    carried: Carried | None
    caps: CapsView
    nodes: tuple[NodeView, ...]
    frontends: tuple[FrontendView, ...]
    admission_mode: str
    recorder: RecorderStatus
    problems: tuple[str, ...]
    reload: str
    counters: Counters
    models: ModelsView
    history: HistoryView | None = None
    batch_tokens: tuple[int | None, ...] = ()
