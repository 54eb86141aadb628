"""Every event that can happen at one node of the explored fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from wattline.grants.messages import Grant
from wattline.grants.node import Node
from wattline.grants.node_state import Found, Journalled
from wattline.verification.bounds import CUT_BUDGET, MAX_W, MIN_W, Bounds, Fault
from wattline.verification.hardware import Hardware, Origin
from wattline.verification.site import (
    DEAD,
    Letter,
    LocalStep,
    Order,
    Site,
    Write,
    disk_of,
    order_words,
    put,
    report_words,
    reset,
    room_for,
    watts_word,
)
from wattline.verification.site_shelf import SiteShelf


class Sites(SiteShelf):
    """All events at a node of a fleet within `bounds`; see `SiteShelf`."""

    def __init__(
        self,
        bounds: Bounds,
        new_node: Callable[..., Node[int]] = Node,
        *,
        keep_dead: bool = False,
    ) -> None:
        super().__init__(bounds, keep_dead=keep_dead)
        self._new_node = new_node
        self._steps: dict[int, tuple[LocalStep, ...]] = {}
        self._answers: dict[tuple[int, bool], tuple[int, tuple[Letter, ...]]] = {}

    def first(self) -> int:
        """A node whose agent has just started on GPUs at their default limits."""
        gpus = range(self._bounds.gpus_per_node)
        hardware = tuple([Hardware(gpu, MAX_W, MAX_W) for gpu in gpus])
        none = tuple([None for _ in gpus])
        empty = tuple([() for _ in gpus])
        return self.restart(Site(DEAD, 0, None, hardware, none, empty, empty))

    # Events

    def steps(self, number: int) -> tuple[LocalStep, ...]:
        """All events that can happen at a node without anybody else."""
        known = self._steps.get(number)
        if known is None:
            site = self.get(number)
            moves = self._live_steps(site) if site.node != DEAD else self._dead_steps(site)
            known = tuple(
                [step for step in (*moves, *self._outside_steps(site)) if step.site != number]
            )
            self._steps[number] = known
        return known

    def _dead_steps(self, site: Site) -> Iterator[LocalStep]:
        yield LocalStep("agent starts", self.restart(site))

    def restart(self, site: Site) -> int:
        """Start an agent on what is enforced and what its disk says."""
        found = {
            gpu.gpu: Found(gpu.enforced_w, MIN_W, MAX_W, gpu.requested_w) for gpu in site.hardware
        }
        disk = site.disk
        journal = None
        if disk is not None:
            journal = Journalled(
                incarnation=site.last_incarnation,
                epoch=disk.epoch,
                budget_version=disk.budget_version,
                gpus=dict(disk.gpus),
            )
        node = self._new_node(found, incarnation=site.last_incarnation + 1, journal=journal)
        return self.put(self._with_node(site, node))

    def _live_steps(self, site: Site) -> Iterator[LocalStep]:
        machine = self.machine(site)
        for position, gpu in enumerate(site.hardware):
            for order in site.inbox[position]:
                yield self._obey(site, order)
            yield from self._writing(site, position)
            state = machine.state(gpu.gpu)
            known_w = (state.enforced_mw / 1000, (state.register_mw or 0) / 1000)
            if known_w != (gpu.enforced_w, gpu.requested_w):
                node = machine.copy()
                node.on_enforced(gpu.gpu, gpu.enforced_w, 0.0, gpu.requested_w)
                yield self._changed(f"reads {watts_word(gpu.enforced_w)} of g{gpu.gpu}", site, node)
            yield from self._report(site, position)
        if any(machine.state(gpu).lease_end_s <= 0.0 for gpu in machine.gpus):
            node = machine.copy()
            if node.tick(0.0):
                yield self._changed("notices that a lease has ended", site, node)

    def _changed(
        self, event: str, site: Site, node: Node[int], fault: Fault | None = None
    ) -> LocalStep:
        """Step after which the agent's machine is `node`, which may hold no more than before."""
        broken = self._holds_more(site, node, {})
        return LocalStep(event, self.put(self._with_node(site, node)), fault, broken)

    def _holds_more(self, site: Site, node: Node[int], leave: dict[int, float]) -> str | None:
        """A node never holds more than it held, was granted (`leave`), or found at its start."""
        before = self.machine(site)
        for gpu in node.gpus:
            if gpu in before.gpus:
                most_w = max(before.held_w(gpu), leave.get(gpu, 0.0))
                if node.held_w(gpu) > most_w:
                    return (
                        f"I3: g{gpu} is held at {watts_word(node.held_w(gpu))} "
                        f"without leave beyond {watts_word(most_w)}"
                    )
        return None

    def _obey(self, site: Site, order: Order) -> LocalStep:
        node = self.machine(site).copy()
        if isinstance(order, Grant):
            outcome = node.on_grant(order, 0.0)
            broken = self._holds_more(site, node, {order.gpu: order.watts})
        else:
            outcome = node.on_adopt(order)
            broken = self._holds_more(site, node, {})
        event = f"gets {order_words(order)}: {outcome.value}"
        return LocalStep(event, self.put(self._with_node(site, node)), None, broken)

    def _writing(self, site: Site, position: int) -> Iterator[LocalStep]:
        """Decide and journal; the device's doing; the call's return with what it reads back."""
        gpu, write = site.hardware[position], site.writes[position]
        machine = self.machine(site)
        if write is None:
            watts = machine.write_due(gpu.gpu, 0.0)
            if watts is None:
                return
            node = machine.copy()
            disk = disk_of(node.journal_state())
            node.begin_write(gpu.gpu, watts, 0.0)
            begun = site._replace(
                disk=disk, writes=put(site.writes, position, Write(watts, done=False))
            )
            yield self._changed(
                f"journals, begins to write {watts_word(watts)} to g{gpu.gpu}", begun, node
            )
        elif not write.done:
            done = gpu.enforce(write.watts, Origin.OURS, self._bounds.settle_ticks)
            after = site._replace(
                hardware=put(site.hardware, position, done),
                writes=put(site.writes, position, write._replace(done=True)),
            )
            yield LocalStep(f"g{gpu.gpu} enforces {watts_word(done.enforced_w)}", self.put(after))
        else:
            node = machine.copy()
            node.end_write(gpu.gpu, gpu.enforced_w, 0.0, gpu.requested_w)
            ended = site._replace(writes=put(site.writes, position, None))
            yield self._changed(
                f"write returns: g{gpu.gpu} at {watts_word(gpu.enforced_w)}", ended, node
            )

    def _report(self, site: Site, position: int) -> Iterator[LocalStep]:
        gpu = site.hardware[position]
        node = self.machine(site).copy()
        node.on_enforced(gpu.gpu, gpu.enforced_w, 0.0, gpu.requested_w)
        letter = Letter(node.report(gpu.gpu, 0.0), gpu.origin is Origin.OUTSIDE)
        for rest in room_for(site.outbox[position], self._bounds.in_flight):
            outbox = put(site.outbox, position, (*rest, letter))
            after = self._with_node(site._replace(outbox=outbox), node.copy())
            yield LocalStep(f"reports {report_words(letter.report)}", self.put(after))

    # What others do

    def _outside_steps(self, site: Site) -> Iterator[LocalStep]:
        wanted = {fault for fault, times in self._bounds.faults.items() if times}
        if site.node != DEAD:
            for fault, keeps_disk in (
                (Fault.NODE_CRASH, True),
                (Fault.NODE_CRASH_DISK_LOST, False),
            ):
                if fault in wanted:
                    yield LocalStep("agent dies", self.put(self._crashed(site, keeps_disk)), fault)
            if Fault.BRAKE in wanted:
                node = self.machine(site).copy()
                node.brake()
                yield self._changed("brakes", site, node, Fault.BRAKE)
            if Fault.RESTORE in wanted:
                for gpu in site.hardware:
                    node = self.machine(site).copy()
                    node.restore(gpu.gpu, MAX_W)
                    yield self._changed(f"is to restore g{gpu.gpu}", site, node, Fault.RESTORE)
            if Fault.NODE_CLOCK_FAST in wanted:
                number = self.tick(self.put(site), node_only=True)
                yield LocalStep("agent's clock runs ahead", number, Fault.NODE_CLOCK_FAST)
        if Fault.NODE_REBOOT in wanted:
            down = self._crashed(site, keeps_disk=True) if site.node != DEAD else site
            gpus = tuple([reset(gpu, self._bounds.settle_ticks) for gpu in down.hardware])
            after = self._silent_letters(down._replace(hardware=gpus))
            yield LocalStep("reboots: default limits", self.put(after), Fault.NODE_REBOOT)
        for position, gpu in enumerate(site.hardware):
            for kind, event, changed in self._gpu_faults(gpu, wanted):
                after = site._replace(hardware=put(site.hardware, position, changed))
                after = self._silent_letters(after, position)
                yield LocalStep(f"g{gpu.gpu} {event}", self.put(after), kind)
            if Fault.GPU_REPLACED in wanted and gpu.gpu == position:
                yield self._replaced(site, position)

    def _gpu_faults(
        self, gpu: Hardware, wanted: set[Fault]
    ) -> Iterator[tuple[Fault | None, str, Hardware]]:
        settle = self._bounds.settle_ticks
        if Fault.DRIVER_RELOAD in wanted:
            yield Fault.DRIVER_RELOAD, "is reset by its driver", reset(gpu, settle)
        if Fault.RIVAL_WRITE in wanted:
            for watts in (MIN_W, MAX_W):
                changed = gpu.enforce(watts, Origin.OUTSIDE, settle)
                yield Fault.RIVAL_WRITE, f"gets {watts_word(watts)} from a rival", changed
        if Fault.CLAMPED_DOWN in wanted and gpu.ceiling_w is None:
            clamped = gpu.clamp(gpu.floor_w, MIN_W, settle)
            yield Fault.CLAMPED_DOWN, f"is clamped to {watts_word(MIN_W)}", clamped
        if Fault.CLAMPED_UP in wanted and gpu.floor_w is None:
            clamped = gpu.clamp((MIN_W + MAX_W) / 2, gpu.ceiling_w, settle)
            yield Fault.CLAMPED_UP, f"is clamped up to {watts_word((MIN_W + MAX_W) / 2)}", clamped
        if gpu.ceiling_w is not None:
            yield None, "is no longer clamped", gpu.clamp(gpu.floor_w, None, settle)

    def _crashed(self, site: Site, keeps_disk: bool) -> Site:
        inbox = site.inbox if self._keep_dead else tuple([() for _ in site.inbox])
        return site._replace(
            node=DEAD,
            last_incarnation=self.machine(site).incarnation,
            disk=site.disk if keeps_disk else None,
            writes=tuple([None for _ in site.writes]),
            inbox=inbox,
        )

    def _silent_letters(self, site: Site, position: int | None = None) -> Site:
        """Reports from before an outside event do not tell of it."""
        outbox = tuple(
            [
                tuple([letter._replace(tells=False) for letter in box])
                if position in (None, place)
                else box
                for place, box in enumerate(site.outbox)
            ]
        )
        return site._replace(outbox=outbox)

    def _replaced(self, site: Site, position: int) -> LocalStep:
        """A GPU of a new identity, at its default limit, where another one was."""
        old = site.hardware[position]
        new = Hardware(old.gpu + self._bounds.gpus_per_node, MAX_W, MAX_W, Origin.OUTSIDE)
        after = self._silent_letters(site, position)._replace(
            hardware=put(site.hardware, position, new),
            writes=put(site.writes, position, None),
            inbox=put(site.inbox, position, ()),
        )
        if site.node != DEAD:
            node = self.machine(site).copy()
            node.drop_gpu(old.gpu)
            node.add_gpu(new.gpu, Found(new.enforced_w, MIN_W, MAX_W, new.requested_w), 0.0)
            after = self._with_node(after, node)
        return LocalStep(
            f"g{old.gpu} is replaced by g{new.gpu}", self.put(after), Fault.GPU_REPLACED
        )

    def see_cut(self, number: int, version: int) -> int:
        """The agent sees a cut of the budget and brakes."""
        site = self.get(number)
        if site.node == DEAD or self.machine(site).budget_version == version:
            return number
        node = self.machine(site).copy()
        node.brake(version)
        return self.put(self._with_node(site, node))

    # A fair schedule

    def answer(self, number: int, *, cut: bool) -> tuple[int, tuple[Letter, ...]]:
        """The agent, started if need be, does all that is due, and reports on every GPU."""
        known = self._answers.get((number, cut))
        if known is None:
            known = self._answers[number, cut] = self._answer(number, cut=cut)
        return known

    def _answer(self, number: int, *, cut: bool) -> tuple[int, tuple[Letter, ...]]:
        site = self.get(number)
        if site.node == DEAD:
            site = self.get(self.restart(site))
        if cut:
            site = self.get(self.see_cut(self.put(site), CUT_BUDGET))
        node = self.machine(site).copy()
        for order in [order for orders in site.inbox for order in orders]:
            if isinstance(order, Grant):
                node.on_grant(order, 0.0)
            else:
                node.on_adopt(order)
        node.tick(0.0)
        hardware, letters = [], []
        for gpu, write in zip(site.hardware, site.writes, strict=True):
            changed = self._written(node, gpu, write)
            node.on_enforced(gpu.gpu, changed.enforced_w, 0.0, changed.requested_w)
            hardware.append(changed)
            report = node.report(gpu.gpu, 0.0)
            letters.append(Letter(report, changed.origin is Origin.OUTSIDE))
        after = site._replace(
            disk=disk_of(node.journal_state()),
            hardware=tuple(hardware),
            writes=tuple([None for _ in site.writes]),
            inbox=tuple([() for _ in site.inbox]),
            outbox=tuple([() for _ in site.outbox]),
        )
        return self.put(self._with_node(after, node)), tuple(letters)

    def _written(self, node: Node[int], gpu: Hardware, write: Write | None) -> Hardware:
        """The GPU after every write that was under way or is due."""
        settle = self._bounds.settle_ticks
        if write is not None:
            gpu = gpu if write.done else gpu.enforce(write.watts, Origin.OURS, settle)
            node.end_write(gpu.gpu, gpu.enforced_w, 0.0, gpu.requested_w)
        watts = node.write_due(gpu.gpu, 0.0)
        if watts is not None:
            node.begin_write(gpu.gpu, watts, 0.0)
            gpu = gpu.enforce(watts, Origin.OURS, settle)
            node.end_write(gpu.gpu, gpu.enforced_w, 0.0, gpu.requested_w)
        return gpu
