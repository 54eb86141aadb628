"""The frontend of one deployment: which workers it sees, which it picks, when it refuses."""

from __future__ import annotations

from collections import deque

from wattline.core.decision import Admission
from wattline.sim.plant.config import Routing
from wattline.sim.plant.outcomes import Sequence
from wattline.sim.plant.replica import Replica


class Stage:
    """Ready replicas that one step of a request may go to, and requests that wait for one."""

    __slots__ = ("_next", "held", "ready", "routing")

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self.ready: list[Replica] = []
        self.held: deque[Sequence] = deque()
        self._next = 0

    def pick(self, sequence: Sequence, workers: list[Replica], now: float) -> Replica:
        """Choose among `workers`, which is not empty; ties go to the lowest number."""
        if len(workers) == 1:
            return workers[0]
        if self.routing is Routing.ROUND_ROBIN:
            self._next += 1
            return workers[(self._next - 1) % len(workers)]
        if self.routing is Routing.LEAST_LOADED:
            return min(workers, key=_load)
        return min(workers, key=lambda worker: _kv_cost(worker, sequence, now))


def _load(worker: Replica) -> int:
    """Count requests; on a prefill replica prompt tokens, which differ far more in work."""
    return worker.load if worker.decodes else worker.prefill_tokens


def _kv_cost(worker: Replica, sequence: Sequence, now: float) -> int:
    """Tokens to compute before this prompt is done, plus tokens of context that decode reads.

    The form of the cost in Dynamo's KV router with an overlap weight of 1.
    """
    overlap = worker.cache.match(sequence.hashes) if worker.cache is not None else 0
    queued = worker.prefill_tokens + max(sequence.prefill_left - overlap, 0)
    return queued + (worker.active_kv_tokens(now) if worker.decodes else 0)


class Frontend:
    """Routing and admission of one deployment.

    `entry` takes prompts (prefill or aggregated replicas), `decode` prompts that were prefilled
    elsewhere; a deployment without prefill pools has no use for the second.
    """

    __slots__ = (
        "_blocks",
        "_fraction",
        "_tokens",
        "admits_all",
        "decode",
        "disaggregated",
        "entry",
    )

    def __init__(self, routing: Routing, *, disaggregated: bool) -> None:
        self.disaggregated = disaggregated
        self.entry = Stage(routing)
        decode_routing = Routing.LEAST_LOADED if routing is Routing.KV_AWARE else routing
        self.decode = Stage(decode_routing)
        self.set_admission(Admission())

    def set_admission(self, admission: Admission) -> None:
        """Thresholds from now on."""
        self._blocks = admission.active_decode_blocks
        self._tokens = admission.active_prefill_tokens
        self._fraction = admission.active_prefill_tokens_frac
        self.admits_all = self._blocks is None and self._tokens is None and self._fraction is None

    def busy(self, worker: Replica, now: float) -> bool:
        """Say whether a threshold that is set is strictly exceeded."""
        tokens, engine = worker.prefill_tokens, worker.engine
        if self._tokens is not None and tokens > self._tokens:
            return True
        if self._fraction is not None and tokens > self._fraction * engine.max_batched_tokens:
            return True
        if self._blocks is None or not worker.decodes:
            return False
        return worker.holds_more_than(self._blocks * worker.kv_capacity, now)

    def eligible(self, stage: Stage, now: float) -> list[Replica]:
        """Ready replicas of a stage that are not busy."""
        if self.admits_all:
            return stage.ready
        return [worker for worker in stage.ready if not self.busy(worker, now)]

    def _all_busy(self, stage: Stage, now: float) -> bool:
        if self.admits_all:
            return not stage.ready
        return all(self.busy(worker, now) for worker in stage.ready)

    def admit(self, sequence: Sequence, now: float) -> Replica | None:
        """Worker for a new request, None to refuse it: all workers of a step are busy, or none is.

        A prompt that no worker's cache could ever hold is refused as well.
        """
        workers = self.eligible(self.entry, now)
        if not workers or (self.disaggregated and self._all_busy(self.decode, now)):
            return None
        needed = sequence.total_tokens
        steps = (workers, self.decode.ready) if self.disaggregated else (workers,)
        for step in steps:
            if all(needed > worker.kv_capacity for worker in step):
                return None
        workers = [w for w in workers if w.kv_capacity >= needed]
        return self.entry.pick(sequence, workers, now)

    def place(self, stage: Stage, sequence: Sequence, now: float) -> Replica | None:
        """Worker for a request that was admitted before; busy ones are avoided, not excluded."""
        needed = sequence.total_tokens
        workers = self.eligible(stage, now) or stage.ready
        workers = [w for w in workers if w.kv_capacity >= needed]
        return stage.pick(sequence, workers, now) if workers else None
