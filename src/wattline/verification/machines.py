"""The protocol's machines as states of a search: kept once each, clocks and names made relative.

Behaviour depends on differences of times, on the order of sequence numbers and on the identity of
incarnations, never on their absolute values (`wattline.grants` compares them, and adds one). So two
machines that differ in these values only are one state, as long as what the rest of the fleet holds
(messages under way, the other side) is renamed alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

from wattline.grants.book import Book
from wattline.grants.coordinator import Coordinator
from wattline.grants.messages import Adopt, Grant, Report
from wattline.grants.node import FIRST_BACKOFF_S, Node
from wattline.grants.node_state import GpuState
from wattline.grants.records import Granted, Lowered
from wattline.verification.bounds import TICK_S
from wattline.verification.frozen import freeze, thaw

Machine = TypeVar("Machine")


class GpuKey(NamedTuple):
    """What a coordinator calls a GPU."""

    node: int
    gpu: int


AnyGrant = Grant[int] | Adopt[int] | Grant[GpuKey] | Adopt[GpuKey]


class Shelf(Generic[Machine]):
    """Every machine state met so far, once, under a number. Machines on it are never changed."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._machines: list[Machine] = []

    def put(self, key: Hashable, machine: Machine) -> int:
        """Number of the state `key`; `machine` stands for it if it is new."""
        number = self._numbers.setdefault(key, len(self._machines))
        if number == len(self._machines):
            self._machines.append(machine)
        return number

    def get(self, number: int) -> Machine:
        """Machine under `number`; to be copied before any change."""
        return self._machines[number]

    def __len__(self) -> int:
        return len(self._machines)


class Names(NamedTuple):
    """Numbers in use around one node, each kind in order; a number is renamed to its place.

    sequences: for each GPU, of grants and adoptions. 0, "nothing acted on", and 1, the first that a
    coordinator uses, are always among them.
    """

    incarnations: tuple[int, ...]
    reports: tuple[int, ...]
    sequences: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def in_place(self) -> bool:
        """True when every number is its place already."""
        return (
            _counts_from(self.incarnations, 1)
            and _counts_from(self.reports, 0)
            and all(_counts_from(numbers, 0) for _, numbers in self.sequences)
        )

    def maps(self) -> Renaming:
        """New numbers by old ones."""
        return Renaming(
            {old: new for new, old in enumerate(self.incarnations, 1)},
            {old: new for new, old in enumerate(self.reports)},
            {gpu: {old: new for new, old in enumerate(numbers)} for gpu, numbers in self.sequences},
        )


class Renaming(NamedTuple):
    """New numbers by old ones, of the incarnations, reports and grants of one node."""

    incarnations: Mapping[int, int]
    reports: Mapping[int, int]
    sequences: Mapping[int, Mapping[int, int]]


def union(parts: Iterable[Names]) -> Names:
    """All numbers that any of `parts` uses."""
    incarnations: set[int] = set()
    reports: set[int] = set()
    sequences: dict[int, set[int]] = {}
    for part in parts:
        incarnations.update(part.incarnations)
        reports.update(part.reports)
        for gpu, numbers in part.sequences:
            sequences.setdefault(gpu, {0, 1}).update(numbers)
    return Names(
        tuple(sorted(incarnations)),
        tuple(sorted(reports)),
        tuple([(gpu, tuple(sorted(numbers))) for gpu, numbers in sorted(sequences.items())]),
    )


def _counts_from(numbers: tuple[int, ...], first: int) -> bool:
    return not numbers or (numbers[0] == first and numbers[-1] == first + len(numbers) - 1)


# Nodes: a node's present is second 0


def at_rest(node: Node[int], passed_s: float, longest_s: float) -> Node[int]:
    """Move a node's clock `passed_s` on and let its present be second 0; changes `node`.

    `longest_s`: a limit that has stood for so long has stood for ever. Pauses between repairs are
    shorter than half a tick, so that of a pause only matters whether it began in this tick.
    """
    for gpu in node.gpus:
        node._gpus[gpu] = _state_at_rest(node.state(gpu), passed_s, longest_s)
    return node


def _state_at_rest(state: GpuState, passed_s: float, longest_s: float) -> GpuState:
    next_repair_s = state.next_repair_s - passed_s
    paused = next_repair_s > 0.0
    backoff_s = FIRST_BACKOFF_S if state.backoff_s > 0.0 else 0.0
    return replace(
        state,
        since_s=max(state.since_s - passed_s, -longest_s),
        lease_end_s=0.0 if state.expired else max(0.0, state.lease_end_s - passed_s),
        writing_since_s=(
            max(state.writing_since_s - passed_s, -TICK_S) if state.writing_mw is not None else 0.0
        ),
        next_repair_s=FIRST_BACKOFF_S if paused else -TICK_S,
        backoff_s=backoff_s,
        repairs=0,
    )


def node_names(node: Node[int]) -> Names:
    """Numbers that a node uses."""
    return Names(
        (node.incarnation,),
        (node.report_sequence,),
        tuple(
            [(gpu, (node.state(gpu).sequence, node.state(gpu).grant_sequence)) for gpu in node.gpus]
        ),
    )


def rename_node(node: Node[int], to: Renaming) -> Node[int]:
    """Return `node` under new numbers."""
    other = node.copy()
    other.incarnation = to.incarnations[node.incarnation]
    other.report_sequence = to.reports[node.report_sequence]
    for gpu in other.gpus:
        state = other.state(gpu)
        new = to.sequences[gpu]
        other._gpus[gpu] = replace(
            state, sequence=new[state.sequence], grant_sequence=new[state.grant_sequence]
        )
    return other


# Messages


def message_names(gpu: int, message: AnyGrant | Report[int] | Report[GpuKey]) -> Names:
    """Numbers that a message uses."""
    reports = (message.report_sequence,) if isinstance(message, Report) else ()
    return Names((message.incarnation,), reports, ((gpu, (message.sequence,)),))


def rename_message(gpu: int, message: Any, to: Renaming) -> Any:
    """Return `message` under new numbers."""
    changes: dict[str, int] = {
        "incarnation": to.incarnations[message.incarnation],
        "sequence": to.sequences[gpu][message.sequence],
    }
    if isinstance(message, Report):
        changes["report_sequence"] = to.reports[message.report_sequence]
    return replace(message, **changes)


# Coordinators


def coordinator_key(coordinator: Coordinator[GpuKey]) -> Hashable:
    """Everything that decides what a coordinator does next, whom it still asks included."""
    return coordinator.freeze(), tuple(sorted(coordinator._unanswered))


def coordinator_names(coordinator: Coordinator[GpuKey], node: int, heard: set[int]) -> Names:
    """Numbers that the books of one node's GPUs use.

    An incarnation that is over and of which nothing is under way (`heard`) is never heard again,
    so that it needs no name.
    """
    parts = []
    for gpu in coordinator.ledger.gpus:
        if gpu.node != node:
            continue
        book = coordinator.ledger.book(gpu)
        known = {book.incarnation} if book.incarnation is not None else set()
        known |= set(book.met) & heard | set(book.ended) & heard
        messages = [each for each in (book.newest, book.adopt) if each is not None]
        known |= {message.incarnation for message in messages}
        sequences = {0, book.acted, book.sent, book.sent + 1, book.addressed_from}
        sequences |= {sequence for sequence, _ in book.alive}
        sequences |= {message.sequence for message in messages}
        reports = (book.report_sequence,) if book.report_sequence >= 0 else ()
        parts.append(Names(tuple(known), reports, ((gpu.gpu, tuple(sequences)),)))
    return union(parts)


def rename_coordinator(
    coordinator: Coordinator[GpuKey], node: int, to: Renaming
) -> Coordinator[GpuKey]:
    """Return `coordinator` with the books of one node's GPUs under new numbers."""
    other = coordinator.copy()
    for gpu in other.ledger.gpus:
        if gpu.node == node:
            other.ledger._books[gpu] = _rename_book(other.ledger.book(gpu), gpu.gpu, to)
    return other


def _rename_book(book: Book[GpuKey], gpu: int, to: Renaming) -> Book[GpuKey]:
    new, incarnations = to.sequences[gpu], to.incarnations
    return replace(
        book,
        alive=[(new[sequence], mw) for sequence, mw in book.alive],
        incarnation=None if book.incarnation is None else incarnations[book.incarnation],
        addressed_from=new[book.addressed_from],
        report_sequence=to.reports.get(book.report_sequence, -1),
        acted=new[book.acted],
        sent=new[book.sent],
        met=tuple([incarnations[each] for each in book.met if each in incarnations]),
        ended=tuple([incarnations[each] for each in book.ended if each in incarnations]),
        newest=None if book.newest is None else rename_message(gpu, book.newest, to),
        adopt=None if book.adopt is None else rename_message(gpu, book.adopt, to),
    )


def swap_nodes(machine: Machine, order: tuple[int, ...]) -> Machine:
    """Return a machine like `machine` in which node order[i] is called i."""
    places = {old: new for new, old in enumerate(order)}

    def renamed(leaf: Any) -> Any:
        if isinstance(leaf, GpuKey):
            return GpuKey(places[leaf.node], leaf.gpu)
        if isinstance(leaf, Grant | Adopt | Granted | Lowered):
            return replace(leaf, gpu=renamed(leaf.gpu))
        return leaf

    return thaw(freeze(machine), renamed)  # type: ignore[no-any-return]
