"""Sites as states of a search: each kept once, renamed, and with the network around it."""

from __future__ import annotations

from collections.abc import Callable

from wattline.grants.messages import Report
from wattline.grants.node import Node
from wattline.verification.bounds import TICK_S, Bounds
from wattline.verification.machines import (
    Names,
    Renaming,
    Shelf,
    at_rest,
    message_names,
    node_names,
    rename_message,
    rename_node,
    union,
)
from wattline.verification.site import (
    DEAD,
    Letter,
    Order,
    Site,
    age,
    may_matter,
    put,
    room_for,
)


class SiteShelf:
    """Every state of a node that was met, under a number, and what the network does to it.

    `keep_dead`: messages that no agent would obey any more are kept under way, for machines that
    may obey them all the same.
    """

    def __init__(
        self,
        bounds: Bounds,
        *,
        keep_dead: bool = False,
    ) -> None:
        self._bounds = bounds
        self._keep_dead = keep_dead
        self._longest_s = (bounds.settle_ticks + bounds.margin_ticks) * TICK_S
        self._nodes: Shelf[Node[int]] = Shelf()
        self._sites: Shelf[Site] = Shelf()

    def get(self, number: int) -> Site:
        """Site under `number`."""
        return self._sites.get(number)

    def machine(self, site: Site) -> Node[int]:
        """Machine of a live site; not to be changed."""
        return self._nodes.get(site.node)

    def put(self, site: Site) -> int:
        """Number of `site`, without what can never matter again."""
        return self._sites.put(site, site)

    def _with_node(self, site: Site, node: Node[int]) -> Site:
        at_rest(node, 0.0, self._longest_s)
        live = site._replace(node=self._nodes.put(node.freeze(), node), last_incarnation=0)
        return live if self._keep_dead else self._without_dead(live, node)

    def _without_dead(self, site: Site, node: Node[int]) -> Site:
        """Drop what no agent obeys any more: other incarnations, and what newer ones replaced.

        An agent never goes back to an incarnation and never to an older (epoch, sequence).
        """
        inbox = tuple(
            [tuple([order for order in orders if may_matter(order, node)]) for orders in site.inbox]
        )
        return site if inbox == site.inbox else site._replace(inbox=inbox)

    def send(self, number: int, order: Order) -> tuple[int, ...]:
        """Put `order` under way to a node; what is too much for the network loses one of them."""
        site = self.get(number)
        position = self._position(site, order.gpu)
        if position is None or (site.node == DEAD and not self._keep_dead):
            return (number,)
        orders = site.inbox[position]
        if order in orders:
            return (number,)
        if site.node != DEAD and not self._keep_dead and not may_matter(order, self.machine(site)):
            return (number,)
        kept = room_for(orders, self._bounds.in_flight)
        return tuple(
            [
                self.put(
                    site._replace(
                        inbox=put(site.inbox, position, tuple(sorted((*rest, order), key=age)))
                    )
                )
                for rest in kept
            ]
        )

    def told(self, number: int, letter: Letter) -> int:
        """A report that shows the doing of an outsider has been taken in."""
        site = self.get(number)
        position = self._position(site, letter.report.gpu)
        if position is None or not letter.tells:
            return number
        hardware = site.hardware[position].told(letter.report.enforced_w)
        return self.put(site._replace(hardware=put(site.hardware, position, hardware)))

    def forgotten(self, number: int) -> int:
        """A new coordinator is in charge, which nobody has told yet."""
        site = self.get(number)
        hardware = tuple([gpu.forgotten() for gpu in site.hardware])
        return self.put(site._replace(hardware=hardware))

    def without_letters(self, number: int, dead: Callable[[Report[int]], bool]) -> int:
        """Drop reports that can change nothing any more."""
        site = self.get(number)
        outbox = tuple(
            [tuple([each for each in box if not dead(each.report)]) for box in site.outbox]
        )
        return number if outbox == site.outbox else self.put(site._replace(outbox=outbox))

    def tick(self, number: int, *, node_only: bool = False) -> int:
        """Let a tick pass; `node_only`: on the agent's clock alone."""
        site = self.get(number)
        if not node_only:
            site = site._replace(hardware=tuple([gpu.tick() for gpu in site.hardware]))
        if site.node == DEAD:
            return self.put(site)
        node = at_rest(self.machine(site).copy(), TICK_S, self._longest_s)
        return self.put(self._with_node(site, node))

    def names(self, number: int) -> Names:
        """Numbers that a site uses."""
        site = self.get(number)
        own = (
            node_names(self.machine(site))
            if site.node != DEAD
            else Names((site.last_incarnation,), (), ())
        )
        orders = [message_names(each.gpu, each) for box in site.inbox for each in box]
        letters = [
            message_names(each.report.gpu, each.report) for box in site.outbox for each in box
        ]
        return union([own, *orders, *letters])

    def renamed(self, number: int, to: Renaming) -> int:
        """The same site under new numbers."""
        site = self.get(number)
        inbox = tuple(
            [tuple([rename_message(each.gpu, each, to) for each in box]) for box in site.inbox]
        )
        outbox = tuple(
            [
                tuple(
                    [
                        each._replace(report=rename_message(each.report.gpu, each.report, to))
                        for each in box
                    ]
                )
                for box in site.outbox
            ]
        )
        after = site._replace(inbox=inbox, outbox=outbox)
        if site.node == DEAD:
            return self.put(after._replace(last_incarnation=to.incarnations[site.last_incarnation]))
        node = rename_node(self.machine(site), to)
        return self.put(self._with_node(after, node))

    @staticmethod
    def _position(site: Site, gpu: int) -> int | None:
        return next((at for at, each in enumerate(site.hardware) if each.gpu == gpu), None)
