"""Sections of the results page on goodput: which cells each needs, and the Markdown of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from results_cells import Cell, Outcome, Setup, Store, prepared, splits
from results_tables import number, table
from wattline.sim.runs import HINDSIGHT

BUDGETS = ("60%", "70%", "80%", "100%")
POLICIES = (
    "uncapped",
    "uniform-cap",
    "static-caps",
    "best-static",
    "dynamo-clamp",
    "dynamo-clamp-parked",
    "dynamo-clamp-best",
    "threshold",
    "slo-scaler",
    "wattline",
    "oracle",
)
OWN = "wattline"
ALWAYS = dict.fromkeys(BUDGETS, 0.99)
TARGETS: dict[str, dict[str, float]] = {
    "dynamo-clamp": {"60%": 1.30, "70%": 1.30, "80%": 1.15},
    "dynamo-clamp-parked": {},
    "uniform-cap": {"60%": 1.08},
    "best-static": ALWAYS,
    "dynamo-clamp-best": ALWAYS,
    "oracle": dict.fromkeys(BUDGETS, 0.95),
}
"""Least goodput of wattline over that of each peer, by budget."""
FACTORS = ("exponent_factor", "static_factor", "floor_factor")
MOVES = (0.7, 1.3)
RANGE_BUDGETS = ("60%", "80%")
RANGE_PEERS = ("dynamo-clamp", "uniform-cap")


def verdict(value: float, target: float | None) -> str:
    """A ratio with its target and whether it is met."""
    if target is None:
        return f"{value:.2f}"
    met = "met" if round(value, 4) >= target else "**missed**"
    return f"{value:.2f} ({target:.2f} {met})"


@dataclass(frozen=True)
class Headline:
    """One scenario under saturating load: every policy at every budget.

    `sweep_until_s`: sweeps in hindsight choose their split on this first part of the traffic at the
    same load, and the chosen split is run on all of it.
    """

    key: str
    title: str
    setup: Setup | None
    lacks: str = ""
    sweep_until_s: float | None = None
    targets: dict[str, dict[str, float]] = field(default_factory=lambda: TARGETS)
    policies: Sequence[str] = POLICIES
    budgets: Sequence[str] = BUDGETS

    def _sweep(self, policy: str, budget: str) -> list[Cell]:
        assert self.setup is not None
        return splits(self.part(), policy, budget)

    def part(self) -> Setup:
        """The first part of the traffic, at the load of all of it; all of it if none is named."""
        assert self.setup is not None
        if self.sweep_until_s is None:
            return self.setup
        load = prepared(self.setup).load_factor
        return replace(self.setup, until_s=self.sweep_until_s, load=load)

    def cells(self, store: Store) -> Iterator[Cell]:
        """Every policy at every budget; for sweeps all splits, then the best of them in full."""
        if self.setup is None:
            return
        for budget in self.budgets:
            for policy in self.policies:
                sweep = self._sweep(policy, budget) if policy in HINDSIGHT else []
                yield from sweep
                chosen = self._chosen(store, policy, budget)
                if chosen is not None:
                    yield chosen

    def _chosen(self, store: Store, policy: str, budget: str) -> Cell | None:
        assert self.setup is not None
        if policy not in HINDSIGHT:
            return Cell(setup=self.setup, policy=policy, budget=budget)
        best = store.best(self._sweep(policy, budget))
        if best is None:
            return None
        caps = tuple(best["cell"]["pool_caps_w"])
        return Cell(setup=self.setup, policy=policy, budget=budget, pool_caps_w=caps)

    def outcome(self, store: Store, policy: str, budget: str) -> Outcome | None:
        """Figures of one policy at one budget, if they are there."""
        chosen = self._chosen(store, policy, budget)
        return None if chosen is None else store.get(chosen)

    def page(self, store: Store) -> list[str]:
        """Load, goodput, joules, watts over the budget, what sweeps found, ratios."""
        lines = [f"## {self.title}", ""]
        if self.setup is None:
            return [*lines, f"Not run: {self.lacks}.", ""]
        found = {
            (policy, budget): self.outcome(store, policy, budget)
            for policy in self.policies
            for budget in self.budgets
        }
        known = [outcome for outcome in found.values() if outcome is not None]
        if not known:
            return [*lines, "Not run.", ""]
        one = known[0]
        lines += [
            f"{one['result']['requests']:,} requests in {one['duration_s']:,.0f} s (load scaled by "
            f"{one['load_factor']:.4g}), {one['result']['gpus']} GPUs.",
            "",
            "Goodput, requests/s (attainment, % of the offered requests):",
            "",
            *self._grid(
                found,
                lambda r: f"{r['goodput_rps']:.2f} ({100 * r['slo_attainment']:.1f})",
            ),
            "Joules per output token:",
            "",
            *self._grid(found, lambda r: number(r["j_per_token"], ".3f")),
            "Enforced limits over the budget, kW·s caused by the policy's own actions:",
            "",
            *self._grid(found, lambda r: f"{r['over_budget_enforced_ws'] / 1e3:,.0f}"),
            *self._sweep_notes(store, found),
            *self._ratios(found),
        ]
        return lines

    def _grid(self, found: dict[tuple[str, str], Outcome | None], show: Show) -> list[str]:
        rows = [
            [f"`{policy}`"]
            + [
                "-" if (cell := found[policy, budget]) is None else show(cell["result"])
                for budget in self.budgets
            ]
            for policy in self.policies
        ]
        return table(["policy", *self.budgets], rows)

    def _sweep_notes(self, store: Store, found: dict[tuple[str, str], Outcome | None]) -> list[str]:
        lines = []
        for policy in self.policies:
            if policy not in HINDSIGHT:
                continue
            caps = []
            for budget in self.budgets:
                cell = found[policy, budget]
                if cell is not None:
                    watts = "/".join(f"{cap:.0f}" for cap in cell["cell"]["pool_caps_w"])
                    caps.append(f"{watts} W at {budget} (of {len(self._sweep(policy, budget))})")
            if caps:
                lines.append(f"- `{policy}`, best split per pool: {', '.join(caps)}.")
        if lines and self.sweep_until_s is not None:
            lines.append(
                f"- Splits were chosen on the first {self.sweep_until_s:,.0f} s of the traffic, at "
                "the same load; the figures above are of the chosen split on all of it."
            )
        return [*lines, ""] if lines else []

    def _ratios(self, found: dict[tuple[str, str], Outcome | None]) -> list[str]:
        rows = []
        for peer, targets in self.targets.items():
            if peer not in self.policies:
                continue
            row = [f"`{peer}`"]
            for budget in self.budgets:
                ratio = goodput_ratio(found[OWN, budget], found[peer, budget])
                row.append("-" if ratio is None else verdict(ratio, targets.get(budget)))
            rows.append(row)
        return [
            "Goodput of `wattline` over that of a peer (least ratio asked for):",
            "",
            *table(["over", *self.budgets], rows),
        ]


class Show(Protocol):
    """Makes a table cell of a row of figures."""

    def __call__(self, result: Outcome, /) -> str:
        """Text of the cell."""
        ...


def goodput_ratio(own: Outcome | None, peer: Outcome | None) -> float | None:
    """Goodput over goodput; None where one is missing or the peer served nothing."""
    if own is None or peer is None or not peer["result"]["goodput_rps"]:
        return None
    return float(own["result"]["goodput_rps"] / peer["result"]["goodput_rps"])


@dataclass(frozen=True)
class Ranges:
    """How far the headline ratios move when the plant's cap response is not the model's."""

    headlines: Sequence[Headline]
    budgets: Sequence[str] = RANGE_BUDGETS
    key: str = "ranges"

    def _setups(self, headline: Headline) -> list[tuple[str, Setup]]:
        part = headline.part()
        moved = [
            (f"{factor.removesuffix('_factor')} x {by}", replace(part, plant=((factor, by),)))
            for factor in FACTORS
            for by in MOVES
        ]
        return [("nominal", part), *moved]

    def cells(self, store: Store) -> Iterator[Cell]:
        """Three policies in every plant."""
        for headline in self.headlines:
            if headline.setup is None:
                continue
            for _, setup in self._setups(headline):
                for budget in self.budgets:
                    for policy in (OWN, *RANGE_PEERS):
                        yield Cell(setup=setup, policy=policy, budget=budget)

    def page(self, store: Store) -> list[str]:
        """Nominal ratio, lowest and highest, and the plants that gave them."""
        rows = []
        for headline in self.headlines:
            if headline.setup is None:
                continue
            for budget in self.budgets:
                for peer in RANGE_PEERS:
                    row = self._row(store, headline, budget, peer)
                    if row is not None:
                        rows.append(row)
        lines = [
            "## Range over what is not known of the cap response",
            "",
            "No public measurement says how the phases of LLM serving on H200 answer power caps. "
            "Here the plant's exponent of power over clock, static share and memory floor are "
            "moved by 30 %, one at a time and both ways; the decision keeps the nominal model.",
            "",
        ]
        for headline in self.headlines:
            if headline.setup is not None and headline.sweep_until_s is not None:
                lines += [
                    f"`{headline.setup.scenario}`: on its first {headline.sweep_until_s:,.0f} s.",
                    "",
                ]
        if not rows:
            return [*lines, "Not run.", ""]
        head = ["goodput ratio", "budget", "nominal", "lowest", "highest", "over budget, W·s"]
        return [*lines, *table(head, rows)]

    def _row(self, store: Store, headline: Headline, budget: str, peer: str) -> list[str] | None:
        ratios: dict[str, float] = {}
        over_ws = 0.0
        for name, setup in self._setups(headline):
            own = store.get(Cell(setup=setup, policy=OWN, budget=budget))
            other = store.get(Cell(setup=setup, policy=peer, budget=budget))
            ratio = goodput_ratio(own, other)
            if own is None or ratio is None:
                return None
            ratios[name] = ratio
            over_ws += own["result"]["over_budget_enforced_ws"]
        low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
        assert headline.setup is not None
        return [
            f"`{headline.setup.scenario}`: wattline / {peer}",
            budget,
            f"{ratios['nominal']:.2f}",
            f"{ratios[low]:.2f} ({low})",
            f"{ratios[high]:.2f} ({high})",
            f"{over_ws:,.0f}",
        ]
