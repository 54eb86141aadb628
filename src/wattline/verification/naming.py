"""One state for all that differ in names only.

Grants, reports and incarnations are numbered anew in the order of their numbers, node by node.
Nodes that may change places without any plan taking notice stand in the order of their states.
"""

from __future__ import annotations

from itertools import permutations

from wattline.grants.book import Book
from wattline.grants.messages import Report
from wattline.verification.bounds import Bounds
from wattline.verification.desks import Desks
from wattline.verification.fleet import SHARED, Fleet, at
from wattline.verification.machines import GpuKey, union
from wattline.verification.sites import Sites


class Namer:
    """Finds the state that stands for a fleet and all that differ from it in names only."""

    def __init__(self, bounds: Bounds, sites: Sites, desks: Desks) -> None:
        self._sites = sites
        self._desks = desks
        self._orders = _symmetries(bounds)
        self._renamed: dict[tuple[int, int, int, int, bool], tuple[int, int, int]] = {}
        self._swapped: dict[tuple[object, ...], int] = {}

    def canonical(self, fleet: Fleet, prune: bool) -> Fleet:
        """Numbers in order of their use, nodes in order of their states.

        `prune`: drop reports that are old to every coordinator there is; no other will start.
        """
        for node in range(len(fleet.sites)):
            fleet = self._renumbered(fleet, node, prune)
        sites = fleet.sites
        if len(sites) < 2 or len(self._orders) < 2:
            return fleet
        best = fleet
        for order, plans in self._orders[1:]:
            if tuple([sites[node] for node in order]) <= sites:
                best = min(best, self._reordered(fleet, order, plans), key=_by_sites)
        return best

    def _renumbered(self, fleet: Fleet, node: int, prune: bool) -> Fleet:
        number = fleet.sites[node]
        key = (fleet.first, fleet.second, node, number, prune)
        known = self._renamed.get(key)
        if known is None:
            known = self._renamed[key] = self._renumber(*key)
        first, second, renamed = known
        if renamed == number and first == fleet.first and second == fleet.second:
            return fleet
        return at(fleet._replace(first=first, second=second), node, renamed)

    def _renumber(
        self, first: int, second: int, node: int, number: int, prune: bool
    ) -> tuple[int, int, int]:
        desks = [desk for desk in (first, second) if desk >= 0]
        if prune:
            number = self._without_letters(desks, node, number)
        mine = self._sites.names(number)
        heard = set(mine.incarnations)
        names = union([mine, *[self._desks.names(desk, node, heard) for desk in desks]])
        to = names.maps()
        renamed = {desk: self._desks.renamed(desk, node, to) for desk in desks}
        return (
            renamed.get(first, first),
            renamed.get(second, second),
            self._sites.renamed(number, to),
        )

    def _without_letters(self, desks: list[int], node: int, number: int) -> int:
        """Drop reports that are old to every coordinator there can be."""
        ledgers = [self._desks.machine(desk).ledger for desk in desks]

        def dead(report: Report[int]) -> bool:
            key = GpuKey(node, report.gpu)
            return all(
                key in ledger.gpus and _is_old(ledger.book(key), report) for ledger in ledgers
            )

        return self._sites.without_letters(number, dead)

    def _reordered(self, fleet: Fleet, order: tuple[int, ...], plans: tuple[int, ...]) -> Fleet:
        return fleet._replace(
            first=self._desk_reordered(fleet.first, order),
            second=self._desk_reordered(fleet.second, order),
            first_log=self._desks.log_swapped(fleet.first_log, order),
            second_log=(
                SHARED
                if fleet.second_log == SHARED
                else self._desks.log_swapped(fleet.second_log, order)
            ),
            plan=plans[fleet.plan],
            sites=tuple([fleet.sites[node] for node in order]),
        )

    def _desk_reordered(self, desk: int, order: tuple[int, ...]) -> int:
        if desk < 0:
            return desk
        key = (desk, order)
        known = self._swapped.get(key)
        if known is None:
            known = self._swapped[key] = self._desks.swapped(desk, order)
        return known


def _is_old(book: Book[GpuKey], report: Report[int]) -> bool:
    if report.incarnation == book.incarnation:
        return report.report_sequence <= book.report_sequence
    return report.incarnation in book.ended


def _by_sites(fleet: Fleet) -> tuple[object, ...]:
    return fleet.sites, fleet


def _symmetries(bounds: Bounds) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Orders of the nodes under which the plans are the same, with the new number of each plan."""
    found = []
    size = bounds.gpus_per_node
    for order in permutations(range(bounds.nodes)):
        plans = [
            tuple([watts for node in order for watts in plan[node * size : (node + 1) * size]])
            for plan in bounds.plans
        ]
        if all(plan in bounds.plans for plan in plans):
            found.append((order, tuple([bounds.plans.index(plan) for plan in plans])))
    return found
