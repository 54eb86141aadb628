"""One engine instance: continuous batching with chunked prefill, in closed form between events.

A replica is idle, in a *pass* (prompt chunks and joining sequences, with one token for everything
that decodes), or in a *run* of decode steps of an unchanging batch. A run ends at the earliest of
the shortest sequence's last token, the end of a cell of context (timing.py) or a full cache; an
arrival cuts it at the next step boundary. Sequences are not touched by a step: the replica counts
steps, and a heap holds the step at which each sequence ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from heapq import heapify, heappop, heappush

from wattline.core.engine import EngineModel, ForwardPass
from wattline.core.fleet import Role
from wattline.core.snapshot import Phase
from wattline.sim.plant.kernel import Kernel
from wattline.sim.plant.outcomes import Sequence
from wattline.sim.plant.prefix import PrefixCache
from wattline.sim.plant.timing import StepTimes, steps_s, steps_within, whole_steps


class Mode(IntEnum):
    """What the engine of a ready replica is doing."""

    IDLE = 0
    PASS = 1
    RUN = 2


_IDLE, _PASS, _RUN = Mode.IDLE, Mode.PASS, Mode.RUN


class Replica:
    """Engine state of one replica slot; the plant owns its phase and its GPUs.

    `on_prefilled(sequence, replica, now)` takes over a prompt that a prefill replica has finished;
    `on_drained(replica, now)` is called when a draining replica has no work left.
    """

    __slots__ = (
        "_batched_tokens",
        "_chosen",
        "_ends",
        "_epoch",
        "_first_s",
        "_growth_s",
        "_kernel",
        "_mode",
        "_on_drained",
        "_on_prefilled",
        "_order",
        "_pass",
        "_pass_end_s",
        "_run_start_s",
        "_run_steps",
        "_seats",
        "_steps",
        "_tokens",
        "_waiting",
        "batch",
        "cache",
        "decodes",
        "engine",
        "gpus",
        "kv_capacity",
        "kv_decode",
        "kv_held",
        "load",
        "number",
        "phase",
        "phase_epoch",
        "phase_since_s",
        "pool",
        "power_w",
        "prefill_tokens",
        "row",
        "times",
        "waiting_kv",
    )

    def __init__(
        self,
        *,
        kernel: Kernel,
        engine: EngineModel,
        role: Role,
        pool: int,
        number: int,
        row: int,
        gpus: tuple[int, ...],
        times: StepTimes,
        cache: PrefixCache | None,
        on_prefilled: Callable[[Sequence, Replica, float], None],
        on_drained: Callable[[Replica, float], None],
    ) -> None:
        self._kernel = kernel
        self.engine = engine
        self.kv_capacity = engine.kv_capacity_tokens
        self._seats = engine.max_num_seqs
        self._batched_tokens = engine.max_batched_tokens
        self.decodes = role is not Role.PREFILL
        self.pool = pool
        self.number = number
        self.row = row
        self.gpus = gpus
        self.times = times
        self.cache = cache
        self._on_prefilled = on_prefilled
        self._on_drained = on_drained
        self.phase = Phase.PARKED
        self.phase_epoch = 0
        self.phase_since_s = 0.0
        self.power_w = 0.0
        self._epoch = 0
        self._tokens = 0
        self._steps = 0
        self._order = 0
        self._clear()

    def _clear(self) -> None:
        self._mode = _IDLE
        self._waiting: deque[Sequence] = deque()
        self._chosen: list[tuple[Sequence, int]] = []
        self._ends: list[tuple[int, int, Sequence]] = []
        self._pass = (0, 0.0, 0, 0)
        self._pass_end_s = 0.0
        self._run_start_s = 0.0
        self._run_steps = 0
        self._first_s = 0.0
        self._growth_s = 0.0
        self.batch = 0
        self.kv_decode = 0
        self.kv_held = 0
        self.waiting_kv = 0
        self.prefill_tokens = 0
        self.load = 0

    # Work coming in

    def enqueue(self, sequence: Sequence, now: float) -> None:
        """Take a request, or on a decode replica one whose prompt has arrived."""
        self._waiting.append(sequence)
        self.load += 1
        self.prefill_tokens += sequence.prefill_left
        self.waiting_kv += sequence.prompt
        if self._mode == _IDLE:
            self._begin(now)
        elif self._mode == _RUN and len(self._waiting) == 1 and self._fits(sequence):
            self._cut(now)

    def _fits(self, sequence: Sequence) -> bool:
        return (
            self.batch < self._seats
            and self.kv_held + sequence.prompt + self.batch + 1 <= self.kv_capacity
        )

    def _cut(self, now: float) -> None:
        """End the run at the next step boundary."""
        elapsed = now - self._run_start_s
        done = whole_steps(elapsed, self._run_steps, self._first_s, self._growth_s)
        if elapsed > steps_s(done, self._first_s, self._growth_s):
            done += 1
        if done < self._run_steps:
            self._run_steps = done
            self._epoch += 1
            end_s = self._run_start_s + steps_s(done, self._first_s, self._growth_s)
            self._kernel.push(max(end_s, now), self.on_event, self._epoch)

    # The engine's loop

    def on_event(self, now: float, epoch: int) -> None:
        """Handle the end of a pass or of a run; an event of an older epoch was overtaken."""
        if epoch != self._epoch:
            return
        if self._mode == _RUN:
            self._take_steps(self._run_steps)
        else:
            self._end_pass(now)
        ends = self._ends
        if ends and ends[0][0] <= self._steps:
            self._finish_due(now)
        self._begin(now)

    def _take_steps(self, count: int) -> None:
        """Every decoding sequence got `count` tokens."""
        grown = self.batch * count
        self._steps += count
        self._tokens += grown
        self.kv_decode += grown
        self.kv_held += grown

    def _finish_due(self, now: float) -> None:
        ends, steps, finish = self._ends, self._steps, self._kernel.outcomes.finish
        while ends and ends[0][0] <= steps:
            sequence = heappop(ends)[2]
            self.batch -= 1
            self.load -= 1
            self.kv_decode -= sequence.total_tokens
            self.kv_held -= sequence.total_tokens
            finish(sequence, now)

    def _end_pass(self, now: float) -> None:
        self._take_steps(1)
        for sequence, chunk in self._chosen:
            sequence.prefill_left -= chunk
            self.prefill_tokens -= chunk
            if sequence.prefill_left:
                # Only the last one can be unfinished: it is first in the next pass.
                self._waiting.appendleft(sequence)
                self.waiting_kv += sequence.prompt
                self.kv_held -= sequence.prompt
                continue
            if self.decodes:
                self._join(sequence, now)
            else:
                self.kv_held -= sequence.prompt
                self.load -= 1
                self._on_prefilled(sequence, self, now)
            if self.cache is not None and chunk and sequence.hashes:
                self.cache.insert(sequence.hashes, self.kv_capacity - self.kv_held)
        self._chosen.clear()

    def _join(self, sequence: Sequence, now: float) -> None:
        """Add a sequence to the batch; the pass that ends gave it its first token."""
        outcomes = self._kernel.outcomes
        outcomes.first_token(sequence.index, now)
        self._tokens += 1
        sequence.left -= 1
        if not sequence.left:
            self.kv_held -= sequence.prompt
            self.load -= 1
            outcomes.finish(sequence, now)
            return
        self.batch += 1
        self.kv_decode += sequence.prompt + 1
        self.kv_held += 1
        self._order += 1
        heappush(self._ends, (self._steps + sequence.left, self._order, sequence))

    def _begin(self, now: float) -> None:
        """Start whatever comes next: a pass, a run, or nothing."""
        while self.batch and self.kv_held + self.batch > self.kv_capacity:
            self._preempt_newest()
        if self._waiting:
            self._choose()
        kernel = self._kernel
        self._epoch += 1
        if self._chosen:
            self._mode = _PASS
            seconds, watts = self.times.pass_cost(*self._pass)
            self._pass_end_s = end_s = now + seconds
        elif self.batch:
            self._mode = _RUN
            watts = self._start_run(now)
            end_s = now + steps_s(self._run_steps, self._first_s, self._growth_s)
        else:
            self._mode = _IDLE
            self.set_power(now, min(self.engine.idle_w, self.times.limit_w))
            if self.phase is Phase.DRAINING and not self.load:
                self._on_drained(self, now)
            return
        kernel.push(end_s, self.on_event, self._epoch)
        if watts != self.power_w:
            self.set_power(now, watts)

    def _start_run(self, now: float) -> float:
        """Set up decode steps until something ends; returns watts per GPU."""
        batch, kv = self.batch, self.kv_decode
        cell = self.times.cell(batch, kv)
        self._run_start_s = now
        self._first_s = cell.start_s + cell.s_per_token * (kv - cell.start_tokens)
        self._growth_s = cell.s_per_token * batch
        self._run_steps = min(
            self._ends[0][0] - self._steps,
            steps_within(kv, cell.end_tokens, batch),
            (self.kv_capacity - self.kv_held) // batch,
        )
        return cell.power_w

    def _choose(self) -> None:
        """Pick what the next pass works on, first come first served."""
        waiting, chosen, batch = self._waiting, self._chosen, self.batch
        budget = self._batched_tokens - batch
        kv_free = self.kv_capacity - self.kv_held - batch
        seats = self._seats - batch
        tokens, context, done, kv_done = 0, 0.0, 0, 0
        while waiting and budget > 0 and seats > 0:
            sequence = waiting[0]
            if sequence.prompt + 1 > kv_free:
                break
            if self.cache is not None and sequence.prefill_left == sequence.prompt:
                self._use_cache(self.cache, sequence)
            left = sequence.prefill_left
            if left > budget and chosen and not self.decodes:
                break  # A prefill replica takes whole prompts, unless one alone is too long.
            waiting.popleft()
            self.waiting_kv -= sequence.prompt
            self.kv_held += sequence.prompt
            kv_free -= sequence.prompt + 1
            seats -= 1
            chunk = left if left < budget else budget
            chosen.append((sequence, chunk))
            budget -= chunk
            tokens += chunk
            # Each token attends to the prompt before it and to itself.
            context += chunk * (sequence.prompt - left) + chunk * (chunk + 1) / 2
            if chunk == left:
                done += 1
                kv_done += sequence.prompt
        if self.decodes:
            self._pass = (tokens, context, batch + done, self.kv_decode + kv_done)
        else:
            self._pass = (tokens, context, 0, 0)

    def _use_cache(self, cache: PrefixCache, sequence: Sequence) -> None:
        """Skip the part of the prompt that a cached prefix covers; one token is always computed."""
        if not sequence.hashes:
            return
        cache.trim(self.kv_capacity - self.kv_held)
        cached = min(cache.match(sequence.hashes), sequence.prompt - 1)
        if cached > 0:
            sequence.prefill_left -= cached
            self.prefill_tokens -= cached
            self._kernel.outcomes.windows[sequence.deployment].cached += cached

    def _preempt_newest(self) -> None:
        """Throw the newest sequence out of the cache; it is computed again when there is room."""
        place = max(range(len(self._ends)), key=lambda i: self._ends[i][1])
        end, _, sequence = self._ends.pop(place)
        heapify(self._ends)
        left = end - self._steps
        self.batch -= 1
        self.kv_decode -= sequence.total_tokens - left
        self.kv_held -= sequence.total_tokens - left
        sequence.restart(left)
        self._waiting.appendleft(sequence)
        self.prefill_tokens += sequence.prefill_left
        self.waiting_kv += sequence.prompt
        self._kernel.preemptions += 1

    # Changes from outside

    def retime(self, now: float, times: StepTimes) -> None:
        """Go on under other step times from this moment; what is in flight is stretched."""
        old, self.times = self.times, times
        if self.phase not in (Phase.READY, Phase.DRAINING):
            return
        if self._mode == _RUN:
            self._retime_run(now)
        elif self._mode == _PASS:
            before_s, _ = old.pass_cost(*self._pass)
            after_s, watts = times.pass_cost(*self._pass)
            self._pass_end_s = now + (self._pass_end_s - now) * (after_s / before_s)
            self._epoch += 1
            self._kernel.push(self._pass_end_s, self.on_event, self._epoch)
            self.set_power(now, watts)
        else:
            self.set_power(now, min(self.engine.idle_w, times.limit_w))

    def _retime_run(self, now: float) -> None:
        elapsed = now - self._run_start_s
        done = self._steps_in_run(now)
        if done == self._run_steps:
            return  # It ends now, by the event that is due.
        rest_s = elapsed - steps_s(done, self._first_s, self._growth_s)
        part = rest_s / (self._first_s + done * self._growth_s)
        self._take_steps(done)
        left = self._run_steps - done
        cell = self.times.cell(self.batch, self.kv_decode)
        self._first_s = cell.start_s + cell.s_per_token * (self.kv_decode - cell.start_tokens)
        self._growth_s = cell.s_per_token * self.batch
        # The step in flight keeps the share of it that is done: as if it had started earlier.
        self._run_start_s = now - part * self._first_s
        self._run_steps = left
        self._epoch += 1
        end_s = self._run_start_s + steps_s(left, self._first_s, self._growth_s)
        self._kernel.push(end_s, self.on_event, self._epoch)
        self.set_power(now, cell.power_w)

    def evict(self, now: float) -> list[Sequence]:
        """Drop everything and return what was in flight, oldest request first."""
        self._take_steps(self._steps_in_run(now))
        lost = [sequence for sequence, _ in self._chosen] + list(self._waiting)
        for sequence in lost:
            sequence.restart(sequence.left)
        for end, _, sequence in self._ends:
            sequence.restart(max(end - self._steps, 1))
            lost.append(sequence)
        self._epoch += 1
        self._clear()
        if self.cache is not None:
            self.cache.clear()
        return sorted(lost, key=lambda sequence: sequence.index)

    def set_power(self, now: float, watts: float) -> None:
        """Each GPU of this replica draws `watts` from now on."""
        if watts != self.power_w:
            self.power_w = watts
            self._kernel.draw(now, self.row, watts)

    # What sensors see

    def _steps_in_run(self, now: float) -> int:
        if self._mode != _RUN:
            return 0
        return whole_steps(now - self._run_start_s, self._run_steps, self._first_s, self._growth_s)

    def steps_done(self, now: float) -> int:
        """Steps that gave every decoding sequence a token, since the start."""
        return self._steps + self._steps_in_run(now)

    def step_end_s(self, now: float, steps: int) -> float | None:
        """When so many more steps of the present run are done, its end at most; None: no run."""
        if self._mode != _RUN:
            return None
        done = min(self._steps_in_run(now) + steps, self._run_steps)
        return self._run_start_s + steps_s(done, self._first_s, self._growth_s)

    def work(self, now: float) -> ForwardPass | None:
        """What is computed at the moment; None while idle."""
        if self._mode == _PASS:
            return ForwardPass(*self._pass)
        kv_tokens = float(self.kv_decode + self.batch * self._steps_in_run(now))
        return ForwardPass(0, 0.0, self.batch, kv_tokens) if self._mode == _RUN else None

    def active_kv_tokens(self, now: float) -> int:
        """Tokens of context held, and those of prompts that wait."""
        return self.kv_held + self.waiting_kv + self.batch * self._steps_in_run(now)

    def holds_more_than(self, tokens: float, now: float) -> bool:
        """Say whether `active_kv_tokens` is above `tokens`, mostly without counting steps."""
        at_start = self.kv_held + self.waiting_kv
        if at_start > tokens:
            return True
        if self._mode != _RUN or at_start + self.batch * self._run_steps <= tokens:
            return False
        return self.active_kv_tokens(now) > tokens

    def generated_tokens(self, now: float) -> int:
        """Output tokens made since the start."""
        return self._tokens + self.batch * self._steps_in_run(now)

    @property
    def running(self) -> int:
        """Sequences in the engine: decoding or in the pass."""
        return self.load - len(self._waiting)
