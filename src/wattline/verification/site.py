"""One node of the explored fleet as a value: its agent, its disk, its GPUs, messages under way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from wattline.grants.messages import Adopt, Grant, Report
from wattline.grants.node import Node
from wattline.grants.node_state import Journalled, JournalledGpu
from wattline.verification.bounds import MAX_W, Fault
from wattline.verification.hardware import Hardware, Origin

DEAD = -1
FOREVER_S = float("inf")
Order = Grant[int] | Adopt[int]
Item = TypeVar("Item")


class Letter(NamedTuple):
    """A report under way. tells: it was made since the last outside event, and shows it."""

    report: Report[int]
    tells: bool


class Write(NamedTuple):
    """A call that writes a limit: begun, and perhaps done by the device though not yet returned."""

    watts: float
    done: bool


class Disk(NamedTuple):
    """A node's journal."""

    epoch: int
    budget_version: int | None
    gpus: tuple[tuple[int, JournalledGpu], ...]


class Site(NamedTuple):
    """One node. `node`: number of its agent's machine, or DEAD; tuples have one entry per GPU."""

    node: int
    last_incarnation: int
    disk: Disk | None
    hardware: tuple[Hardware, ...]
    writes: tuple[Write | None, ...]
    inbox: tuple[tuple[Order, ...], ...]
    outbox: tuple[tuple[Letter, ...], ...]


@dataclass(frozen=True, slots=True)
class LocalStep:
    """An event at one node: its name, the site after it, the kind of fault, what it broke."""

    event: str
    site: int
    fault: Fault | None = None
    broken: str | None = None


def put(items: tuple[Item, ...], position: int, item: Item) -> tuple[Item, ...]:
    """`items` with another one at `position`."""
    return (*items[:position], item, *items[position + 1 :])


def room_for(items: tuple[Item, ...], most: int) -> list[tuple[Item, ...]]:
    """What may be left of `items` when one more is to come and the network keeps `most`."""
    if len(items) < most:
        return [items]
    return [items[:lost] + items[lost + 1 :] for lost in range(len(items))]


def age(order: Order) -> tuple[int, int, int, str]:
    """Orders are kept in this order, so that a bag of them is written in one way."""
    return order.epoch, order.sequence, order.incarnation, type(order).__name__


def may_matter(order: Order, node: Node[int]) -> bool:
    """False when `node` will never again do anything about `order`.

    A node never goes back to an incarnation, and never to an older epoch or (epoch, sequence).
    """
    if order.gpu not in node.gpus or order.incarnation != node.incarnation:
        return False
    state = node.state(order.gpu)
    mine, theirs = (state.epoch, state.sequence), (order.epoch, order.sequence)
    if order.epoch < node.epoch or theirs < mine:
        return False
    renews = isinstance(order, Grant) and order.lease_s < FOREVER_S
    return theirs > mine or renews


def disk_of(journalled: Journalled[int]) -> Disk:
    """A journal as a value; the incarnation in it is for the agent's own use."""
    gpus = tuple(sorted(journalled.gpus.items(), key=lambda entry: entry[0]))
    return Disk(journalled.epoch, journalled.budget_version, gpus)


def reset(gpu: Hardware, settle: int) -> Hardware:
    """A GPU back at its default limit, free of out-of-band clamps."""
    return gpu._replace(floor_w=None, ceiling_w=None).enforce(MAX_W, Origin.OUTSIDE, settle)


def watts_word(watts: float) -> str:
    """Watts for a human."""
    return f"{watts:g} W"


def order_words(order: Any) -> str:
    """A grant or adoption for a human."""
    address = f"e{order.epoch} s{order.sequence} to i{order.incarnation}"
    if isinstance(order, Grant):
        return f"grant g{order.gpu} {watts_word(order.watts)} ({address})"
    return f"adopt g{order.gpu} ({address})"


def report_words(report: Any) -> str:
    """A report for a human."""
    return (
        f"g{report.gpu} #{report.report_sequence} i{report.incarnation} e{report.epoch} "
        f"s{report.sequence}: enforced {watts_word(report.enforced_w)}, "
        f"held {watts_word(report.held_w)}, stood {report.standing_s:g} s"
    )
