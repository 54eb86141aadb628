"""All replicas and their life: parked, starting, ready, draining, lost; and the pace of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from wattline.core.engine import EngineModel
from wattline.core.errors import InputError
from wattline.core.fleet import Fleet, GpuProduct, Setting
from wattline.core.snapshot import Phase
from wattline.sim.plant.config import PlantConfig
from wattline.sim.plant.gpus import GpuBank
from wattline.sim.plant.kernel import Kernel
from wattline.sim.plant.outcomes import Sequence
from wattline.sim.plant.prefix import PrefixCache
from wattline.sim.plant.replica import Replica
from wattline.sim.plant.timing import StepTimes

BiasSignal = Literal["prefill_time", "decode_time", "power"]

_TABLES_PER_POOL = 128


class Workers:
    """Replica slots of all pools: slot k of a pool is its k-th group of `gpus_per_replica` GPUs.

    `on_members(pool)` is called after the ready replicas of a pool have changed.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        engines: tuple[EngineModel, ...],
        config: PlantConfig,
        kernel: Kernel,
        bank: GpuBank,
        on_prefilled: Callable[[Sequence, Replica, float], None],
        on_members: Callable[[int, float], None],
    ) -> None:
        self._fleet = fleet
        self._engines = engines
        self._config = config
        self._kernel = kernel
        self._bank = bank
        self._on_members = on_members
        self._biases = [[1.0, 1.0, 1.0] for _ in fleet.pools]
        self._tables: list[dict[tuple[float, ...], StepTimes]] = [{} for _ in fleet.pools]
        self._blocked = [False] * len(fleet.pools)
        self.node_lost = [False] * bank.nodes
        self.row_gpus: list[int] = []
        self.row_pool: list[int] = []
        self.row_idle_w: list[float] = []
        self._row_replica: dict[int, Replica] = {}
        self.pools = [self._build(index, on_prefilled) for index in range(len(fleet.pools))]

    def _build(
        self, index: int, on_prefilled: Callable[[Sequence, Replica, float], None]
    ) -> list[Replica]:
        pool, engine, config = self._fleet.pools[index], self._engines[index], self._config
        product, first = self._fleet.product_of(pool), self._bank.first_gpu[index]
        size = pool.gpus_per_replica
        replicas = []
        for number in range(pool.gpus // size):
            gpus = tuple(range(first + number * size, first + (number + 1) * size))
            cache = PrefixCache(config.prefix_block_tokens) if config.prefix_caching else None
            replica = Replica(
                kernel=self._kernel,
                engine=engine,
                role=pool.role,
                pool=index,
                number=number,
                row=self._add_row(index, gpus, self._idle_w(product)),
                gpus=gpus,
                times=self._times(index, gpus),
                cache=cache,
                on_prefilled=on_prefilled,
                on_drained=self._park,
            )
            self._row_replica[replica.row] = replica
            replica.set_power(0.0, self._idle_w(product))
            replicas.append(replica)
        spare = tuple(range(first + len(replicas) * size, first + pool.gpus))
        if spare:
            row = self._add_row(index, spare, self._idle_w(product))
            self._kernel.draw(0.0, row, self._idle_w(product))
        return replicas

    def _add_row(self, pool: int, gpus: tuple[int, ...], idle_w: float) -> int:
        row = len(self.row_gpus)
        self.row_gpus.append(len(gpus))
        self.row_pool.append(pool)
        self.row_idle_w.append(idle_w)
        for gpu in gpus:
            self._bank.row[gpu] = row
        return row

    def _idle_w(self, product: GpuProduct) -> float:
        """Watts without a model loaded."""
        if product.idle_w is not None:
            return product.idle_w
        return self._config.unknown_idle_fraction * product.max_limit_w

    def replica_of(self, gpu: int) -> Replica | None:
        """Return the replica slot of a GPU; None for GPUs left over in their pool."""
        return self._row_replica.get(self._bank.row[gpu])

    # Life

    def start_ready(self, pool: int, count: int, setting: Setting) -> None:
        """Begin a run with `count` replicas loaded and serving under `setting`."""
        if not 0 <= count <= len(self.pools[pool]):
            where = f"pool {self._fleet.pools[pool].name}, replicas at the start"
            raise InputError(where, count, f"its GPUs hold 0 to {len(self.pools[pool])}")
        for replica in self.pools[pool][:count]:
            for gpu in replica.gpus:
                self._bank.set_now(gpu, setting.cap_w, setting.clock)
            self._repace(replica, 0.0)
            self._make_ready(replica, 0.0)

    def start(self, pool: int, count: int, now: float) -> int:
        """Begin to load up to `count` replicas on parked GPUs; returns how many."""
        parked = [r for r in self.pools[pool] if r.phase is Phase.PARKED][:count]
        for replica in parked:
            self._set_phase(replica, Phase.STARTING, now)
            if not self._blocked[pool]:
                ready_s = now + self._fleet.pools[pool].startup_s
                self._kernel.push(ready_s, self._started(replica), replica.phase_epoch)
        return len(parked)

    def _started(self, replica: Replica) -> Callable[[float, int], None]:
        def handler(now: float, epoch: int) -> None:
            if epoch == replica.phase_epoch:
                self._make_ready(replica, now)

        return handler

    def stop(self, pool: int, count: int, now: float) -> int:
        """Stop up to `count` replicas: starting ones first, then the least loaded ready ones."""
        starting = [r for r in self.pools[pool] if r.phase is Phase.STARTING]
        ready = [r for r in self.pools[pool] if r.phase is Phase.READY]
        order = sorted(starting, key=lambda r: -r.number)
        order += sorted(ready, key=lambda r: (r.load, -r.number))
        for replica in order[:count]:
            if replica.phase is Phase.READY and replica.load:
                replica.phase = Phase.DRAINING
            else:
                self._park(replica, now)
            self._on_members(pool, now)
        return len(order[:count])

    def _make_ready(self, replica: Replica, now: float) -> None:
        self._set_phase(replica, Phase.READY, now)
        self._on_members(replica.pool, now)

    def _park(self, replica: Replica, now: float) -> None:
        if replica.cache is not None:
            replica.cache.clear()
        self._set_phase(replica, Phase.PARKED, now)

    def _set_phase(self, replica: Replica, phase: Phase, now: float) -> None:
        replica.phase = phase
        replica.phase_epoch += 1
        replica.phase_since_s = now
        self._set_rest_power(replica, now)

    def _set_rest_power(self, replica: Replica, now: float) -> None:
        """Draw of a replica that has nothing to compute."""
        product = self._bank.products[replica.gpus[0]]
        watts = self._idle_w(product)
        if replica.phase is Phase.READY:
            watts = replica.engine.idle_w
        elif replica.phase is Phase.STARTING:
            watts += self._config.loading_fraction * (product.max_limit_w - watts)
        replica.set_power(now, min(watts, replica.times.limit_w))

    # Pace

    def write(self, gpu: int, cap_w: float, clock: float, now: float) -> float:
        """Write a limit; returns the limit then enforced."""
        bank = self._bank
        if not self.node_lost[bank.node[gpu]]:
            settled_s = bank.write(gpu, cap_w, clock, now)
            if settled_s is not None:
                self._kernel.push(settled_s, self._on_settled, gpu)
        return bank.enforced_w[gpu]

    def _on_settled(self, now: float, gpu: int) -> None:
        replica = self.replica_of(gpu)
        gpus = (gpu,) if replica is None else replica.gpus
        if self._bank.settle(gpus, now) and replica is not None:
            self._repace(replica, now)

    def set_derate(self, gpu: int, factor: float, now: float) -> None:
        """Speed left to a GPU."""
        self._bank.derate[gpu] = factor
        replica = self.replica_of(gpu)
        if replica is not None:
            self._repace(replica, now)

    def set_bias(self, signal: BiasSignal, pool: int, factor: float, now: float) -> None:
        """Make the plant differ from its engine model in one pool."""
        place = ("prefill_time", "decode_time", "power").index(signal)
        self._biases[pool][place] = round(factor, 4)
        for replica in self.pools[pool]:
            self._repace(replica, now)

    def _repace(self, replica: Replica, now: float) -> None:
        times = self._times(replica.pool, replica.gpus)
        if times is not replica.times:
            replica.retime(now, times)
            if replica.phase not in (Phase.READY, Phase.DRAINING):
                self._set_rest_power(replica, now)

    def _times(self, pool: int, gpus: tuple[int, ...]) -> StepTimes:
        cap_w, clock, derate = self._bank.pace(gpus)
        prefill, decode, power = self._biases[pool]
        key = (round(cap_w, 3), round(clock, 6), round(derate, 6), prefill, decode, power)
        tables = self._tables[pool]
        found = tables.get(key)
        if found is None:
            if len(tables) >= _TABLES_PER_POOL:
                del tables[next(iter(tables))]
            found = tables[key] = StepTimes(
                self._engines[pool],
                Setting(key[0], key[1]),
                key[2],
                (prefill, decode, power),
                round(self._config.noise.mean_fraction * key[0], 3),
            )
        return found

    # Faults

    def block_startup(self, pool: int, blocked: bool) -> None:
        """While blocked, replicas that are started load for ever: they have to be stopped."""
        self._blocked[pool] = blocked

    def lose_node(self, node: int, now: float) -> list[Sequence]:
        """Take down a node and every replica with a GPU on it; returns what was in flight."""
        self.node_lost[node] = True
        evicted: list[Sequence] = []
        for replica in self._on_node(node):
            evicted += replica.evict(now)
            self._set_phase(replica, Phase.LOST, now)
            self._on_members(replica.pool, now)
        return sorted(evicted, key=lambda sequence: sequence.index)

    def return_node(self, node: int, now: float) -> None:
        """Bring a node back, its GPUs empty and at their default limits."""
        bank = self._bank
        self.node_lost[node] = False
        for gpu, home in enumerate(bank.node):
            if home == node:
                bank.set_now(gpu, bank.products[gpu].default_limit_w, 1.0)
        bank.note_total(now)
        for replica in self._on_node(node):
            self._repace(replica, now)
            if not any(self.node_lost[bank.node[gpu]] for gpu in replica.gpus):
                self._set_phase(replica, Phase.PARKED, now)

    def _on_node(self, node: int) -> list[Replica]:
        return [
            replica
            for replica in self._row_replica.values()
            if any(self._bank.node[gpu] == node for gpu in replica.gpus)
        ]
