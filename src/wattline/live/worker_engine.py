"""One replica of the plant, run against a clock of the caller.

Nothing of the engine is written anew: batching, step times, watts, settling of limits and the life
of a replica are `sim.plant`'s. An event happens at its own time, however late the caller comes, so
that a slow process makes tokens late but never a pass longer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from heapq import heappop

from wattline.core.engine import EngineModel, ForwardPass
from wattline.core.errors import InputError
from wattline.core.fleet import Deployment, Fleet, GpuProduct, Pool, Role, Setting, Slo
from wattline.core.snapshot import Phase
from wattline.sim.plant.config import PlantConfig
from wattline.sim.plant.gpus import GpuBank
from wattline.sim.plant.kernel import Kernel
from wattline.sim.plant.outcomes import Outcomes, Sequence
from wattline.sim.plant.prefix import PrefixCache
from wattline.sim.plant.replica import Replica
from wattline.sim.plant.workers import Workers

_POOL = 0
_NANO_S = 1e-9


class Job:
    """One request in the engine. `made` counts output tokens so far; `prefilled` is for prefill.

    `changed(job)` is called when either has moved, once per `LiveEngine.run_until`.
    """

    __slots__ = ("_joined", "changed", "made", "output", "prefilled", "sequence")

    def __init__(
        self,
        index: int,
        prompt_tokens: int,
        output_tokens: int,
        hashes: tuple[int, ...],
        changed: Callable[[Job], None],
    ) -> None:
        self.sequence = Sequence(index, 0, prompt_tokens, output_tokens, hashes)
        self.output = output_tokens
        self.made = 0
        self.prefilled = False
        self.changed = changed
        self._joined: int | None = None

    @property
    def finished(self) -> bool:
        """True after the last token, or after the prompt on a prefill replica."""
        return self.prefilled or self.made == self.output

    def join(self, steps: int) -> None:
        """It is in the batch since so many steps of its replica."""
        self._joined = steps

    def look(self, steps: int) -> bool:
        """Bring `made` up to the replica's steps; True if it moved."""
        if self._joined is None:
            return False
        made = self.output - self.sequence.left
        if not self.sequence.prefill_left:  # else it was thrown out of the cache and waits again
            made += steps - self._joined
        made = min(made, self.output - 1)  # the last one comes with the end of the request
        moved = made > self.made
        self.made = max(self.made, made)
        return moved


class _LiveOutcomes(Outcomes):
    """Tells jobs instead of keeping columns."""

    def __init__(self) -> None:
        super().__init__(1)
        self.jobs: dict[int, Job] = {}
        self.ended: deque[Job] = deque()
        self.replica: Replica | None = None

    def first_token(self, index: int, now: float) -> None:
        """Remember at which step the sequence joined the batch, anew after a preemption."""
        assert self.replica is not None
        self.jobs[index].join(self.replica.steps_done(now))

    def finish(self, sequence: Sequence, now: float) -> None:
        """The last token of a sequence."""
        job = self.jobs.pop(sequence.index)
        job.made = job.output
        self.completed += 1
        self.ended.append(job)


class _LiveKernel(Kernel):
    """Keeps the newest draw only: the energy is counted by the GPUs themselves."""

    __slots__ = ("drawn_w",)

    def __init__(self, outcomes: Outcomes) -> None:
        super().__init__(outcomes)
        self.drawn_w = 0.0

    def draw(self, now: float, row: int, watts: float) -> None:
        """Each GPU draws `watts` from now on."""
        self.drawn_w = watts


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What sensors see of the engine; the words are those of the plant's `PoolCounters`.

    work: the pass that runs, None while idle. prefills: prompts in it. pass_s: its length under the
    present setting. drawn_w and wanted_w per GPU: under the present limits, and at the largest one.
    """

    phase: Phase
    work: ForwardPass | None
    pass_s: float
    prefills: int
    batch: int
    running: int
    waiting: int
    waiting_kv_tokens: int
    queued_prefill_tokens: int
    active_kv_tokens: int
    held_kv_tokens: int
    cached_tokens: int
    generated_tokens: int
    steps: int
    preemptions: int
    drawn_w: float
    wanted_w: float


class LiveEngine:
    """A replica of `gpus` GPUs whose time is given with every call, in seconds that never fall.

    Limits and clocks that are set take effect at once: whoever reads them from a GPU reads what the
    chip obeys by now. `tokens_per_block` is the size of a block of the prefix cache.
    """

    def __init__(
        self,
        *,
        engine: EngineModel,
        role: Role,
        product: GpuProduct,
        gpus: int,
        startup_s: float,
        cap_w: float,
        tokens_per_block: int,
        cache: PrefixCache | None = None,
    ) -> None:
        self.engine = engine
        self.role = role
        self.product = product
        self._config = PlantConfig(
            gpus_per_node=gpus, prefix_block_tokens=tokens_per_block, prefix_caching=cache is None
        )
        self._outcomes = _LiveOutcomes()
        self._kernel = _LiveKernel(self._outcomes)
        fleet = _fleet_of(role, replace(product, settle_s=0.0), gpus, startup_s)
        self._bank = GpuBank(fleet, gpus)
        for gpu in range(gpus):
            self._bank.set_now(gpu, cap_w, 1.0)
        self._workers = Workers(
            fleet=fleet,
            engines=(engine,),
            config=self._config,
            kernel=self._kernel,
            bank=self._bank,
            on_prefilled=self._prefilled,
            on_members=_nobody_to_tell,
        )
        self._replica = self._workers.pools[_POOL][0]
        if cache is not None:
            self._replica.cache = cache
        self._outcomes.replica = self._replica
        self._next_index = 0
        self.step_stride = 1
        """Steps of a run after which tokens are handed out; 1: after each."""

    # Changes from outside

    def start(self, now: float) -> None:
        """Begin to load; ready `startup_s` later."""
        self._workers.start(_POOL, 1, now)

    def stop(self, now: float) -> None:
        """Take no more; parked as soon as the last request is done."""
        self.run_until(now)
        self._workers.stop(_POOL, 1, now)

    def submit(
        self,
        now: float,
        *,
        prompt_tokens: int,
        output_tokens: int,
        changed: Callable[[Job], None],
        hashes: tuple[int, ...] = (),
        prefilled: bool = False,
        delay_s: float = 0.0,
    ) -> Job:
        """Take a request; `prefilled`: its cache arrives `delay_s` from now, else its prompt.

        InputError for one that could never fit into the cache.
        """
        room = self.engine.kv_capacity_tokens
        if prompt_tokens + output_tokens > room:
            remedy = f"the cache of a replica holds {room} tokens"
            raise InputError("request", f"{prompt_tokens} + {output_tokens} tokens", remedy)
        self.run_until(now)
        job = Job(self._next_index, prompt_tokens, output_tokens, hashes, changed)
        self._next_index += 1
        self._outcomes.jobs[job.sequence.index] = job
        if prefilled:
            job.sequence.prefill_left = 0
        if delay_s > 0.0:
            self._kernel.push(now + delay_s, self._arrive, job.sequence.index)
        else:
            self._replica.enqueue(job.sequence, now)
        return job

    def _arrive(self, now: float, index: int) -> None:
        self._replica.enqueue(self._outcomes.jobs[index].sequence, now)

    def obey(self, now: float, limits_w: tuple[float, ...], clocks: tuple[float, ...]) -> None:
        """From now on the GPUs run under these limits and clock ceilings (fractions)."""
        self.run_until(now)
        for gpu, (cap_w, clock) in enumerate(zip(limits_w, clocks, strict=True)):
            self._workers.write(gpu, cap_w, clock, now)
        self.run_until(now + _NANO_S)  # the plant rounds the moment of settling

    def _prefilled(self, sequence: Sequence, replica: Replica, now: float) -> None:
        job = self._outcomes.jobs.pop(sequence.index)
        job.prefilled = True
        self._outcomes.completed += 1
        self._outcomes.ended.append(job)

    # Time

    def run_until(self, now: float) -> int:
        """Let everything happen that is due, and tell jobs that moved; returns how many events."""
        heap, events = self._kernel.heap, 0
        while heap and heap[0][0] <= now:
            at_s, _, handler, tag = heappop(heap)
            handler(at_s, tag)
            events += 1
        steps = self._replica.steps_done(now)
        for job in self._outcomes.jobs.values():
            if job.look(steps):
                job.changed(job)
        while self._outcomes.ended:
            job = self._outcomes.ended.popleft()
            job.changed(job)
        return events

    def next_s(self, now: float) -> float | None:
        """When to call `run_until` next: an event, or tokens to hand out; None while idle."""
        heap = self._kernel.heap
        known = [heap[0][0]] if heap else []
        step_s = self._replica.step_end_s(now, self.step_stride)
        if step_s is not None:
            # Events are rounded to 1e-9 s: rounded up, the last step is not before the run's end.
            known.append(round(step_s + _NANO_S, 9))
        return min(known, default=None)

    # What sensors see

    @property
    def phase(self) -> Phase:
        """Starting, ready, draining or parked."""
        return self._replica.phase

    @property
    def in_flight(self) -> int:
        """Requests taken and not finished, those on their way included."""
        return len(self._outcomes.jobs)

    @property
    def completed(self) -> int:
        """Requests finished."""
        return self._outcomes.completed

    def load(self, now: float) -> Load:
        """The engine now."""
        replica = self._replica
        work = replica.work(now)
        setting = Setting(*self._bank.pace(replica.gpus)[:2])
        pass_s = 0.0 if work is None else self.engine.cost(work, setting).duration_s
        return Load(
            phase=replica.phase,
            work=work,
            pass_s=pass_s,
            prefills=replica.running - replica.batch if work and work.prefill_tokens else 0,
            batch=replica.batch,
            running=replica.running,
            waiting=replica.load - replica.running,
            waiting_kv_tokens=replica.waiting_kv,
            queued_prefill_tokens=replica.prefill_tokens,
            active_kv_tokens=replica.active_kv_tokens(now),
            held_kv_tokens=replica.active_kv_tokens(now) - replica.waiting_kv,
            cached_tokens=self._outcomes.windows[0].cached,
            generated_tokens=replica.generated_tokens(now),
            steps=replica.steps_done(now),
            preemptions=self._kernel.preemptions,
            drawn_w=self._kernel.drawn_w,
            wanted_w=self._wanted_w(work, setting.clock),
        )

    def _wanted_w(self, work: ForwardPass | None, clock: float) -> float:
        """Watts per GPU at the product's largest limit and the present clock ceiling."""
        if work is None:
            return self._kernel.drawn_w
        unlimited = Setting(self.product.max_limit_w, clock)
        return max(self._kernel.drawn_w, self.engine.cost(work, unlimited).power_w)


def transfer_s(engine: EngineModel, prompt_tokens: int, source_gpus: int) -> float:
    """Seconds to move a prompt's cache from a prefill replica, as the plant has it."""
    config = PlantConfig()
    rate = config.kv_bytes_per_s_per_gpu * source_gpus
    return engine.kv_bytes_per_token * prompt_tokens / rate + config.kv_latency_s


def _fleet_of(role: Role, product: GpuProduct, gpus: int, startup_s: float) -> Fleet:
    pool = Pool(
        name="worker",
        deployment="worker",
        role=role,
        gpu=product.name,
        gpus=gpus,
        gpus_per_replica=gpus,
        min_replicas=0,
        max_replicas=1,
        startup_s=startup_s,
    )
    deployment = Deployment(name="worker", model="", slo=Slo(1.0, 1.0))
    return Fleet(products=(product,), deployments=(deployment,), pools=(pool,))


def _nobody_to_tell(pool: int, now: float) -> None:
    """The plant's frontends follow the members of a pool; here Dynamo's frontend does."""
