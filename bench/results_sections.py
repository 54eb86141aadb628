"""Sections of the results page on joules and on staying inside the budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from results_cells import Cell, Outcome, Setup, Store
from results_tables import number, table
from wattline.sim.fewest import FEWEST, TARGET
from wattline.sim.scenario import builtin_names

OWN = "wattline"
MOST_LOST = 0.005
"""Attainment that the energy objective may give up against its baseline."""


@dataclass(frozen=True)
class EnergyCase:
    """Traffic on which joules are compared, and the share of joules per token to be saved.

    `budget` is 100 %, or "" where that is the scenario's own.
    """

    title: str
    setup: Setup | None
    goal: float
    budget: str = "100%"


@dataclass(frozen=True)
class Energy:
    """Objective energy against the fewest replicas at full power."""

    cases: Sequence[EnergyCase]
    lacks: str
    key: str = "energy"
    policies: Sequence[str] = (FEWEST, "uncapped", OWN)

    def cells(self, store: Store) -> Iterator[Cell]:
        """Three policies, no shortage of watts; the longest first."""
        for case in reversed(self.cases):
            if case.setup is not None:
                for policy in self.policies:
                    yield Cell(setup=case.setup, policy=policy, budget=case.budget)

    def page(self, store: Store) -> list[str]:
        """Joules per token and attainment of each, and what is saved."""
        lines = [
            "## Energy: fewest joules that meet the targets",
            "",
            f"Objective `energy` at a budget of 100 %. The baseline, `{FEWEST}`, is the smallest "
            f"number of replicas at full power that reaches {TARGET:.0%} attainment, on all the "
            "time; its other GPUs idle at their default limit. All GPUs of the scenario count.",
            "",
        ]
        for case in self.cases:
            lines += [f"**{case.title}**", ""]
            lines += self._case(store, case) if case.setup else [f"Not run: {self.lacks}.", ""]
        return lines

    def _case(self, store: Store, case: EnergyCase) -> list[str]:
        assert case.setup is not None
        found = {
            policy: store.get(Cell(setup=case.setup, policy=policy, budget=case.budget))
            for policy in self.policies
        }
        base, own = found[FEWEST], found[OWN]
        rows = []
        for policy, outcome in found.items():
            if outcome is None:
                continue
            result = outcome["result"]
            rows.append(
                [
                    f"`{policy}`",
                    number(result["j_per_token"], ".3f"),
                    "-" if base is None else _percent(result, base["result"]),
                    f"{100 * result['slo_attainment']:.2f}",
                    f"{100 * outcome['worst_window']:.1f}",
                    f"{result['energy_j'] / 3.6e6:,.2f}",
                ]
            )
        if not rows:
            return ["Not run.", ""]
        head = ["policy", "J/token", "against baseline", "attainment %", "worst 5 min %", "kWh"]
        one = next(outcome for outcome in found.values() if outcome is not None)
        lines = [
            f"{one['result']['requests']:,} requests in {one['duration_s']:,.0f} s, "
            f"{one['result']['gpus']} GPUs.",
            "",
            *table(head, rows),
        ]
        if base is not None:
            lines += [base["note"], ""]
        if base is not None and own is not None:
            lines += [_judged(own["result"], base["result"], case.goal), ""]
        return lines


def _percent(result: Outcome, base: Outcome) -> str:
    if result["j_per_token"] is None or not base["j_per_token"]:
        return "-"
    return f"{100 * (result['j_per_token'] / base['j_per_token'] - 1):+.1f} %"


def _judged(own: Outcome, base: Outcome, goal: float) -> str:
    if own["j_per_token"] is None or not base["j_per_token"]:
        return "No tokens, no figure."
    saved = 1 - own["j_per_token"] / base["j_per_token"]
    lost = base["slo_attainment"] - own["slo_attainment"]
    joules = "met" if round(saved, 4) >= goal else "**missed**"
    kept = "met" if round(lost, 6) <= MOST_LOST else "**missed**"
    return (
        f"Joules per token -{goal:.0%} asked for: {joules} ({-saved:+.1%}); attainment within half "
        f"a point of the baseline: {kept} ({-100 * lost:+.2f} points)."
    )


@dataclass(frozen=True)
class Safety:
    """Watts enforced over the budget by wattline's own actions, in every built-in scenario."""

    until_s: float | None = None
    key: str = "safety"

    def _cells(self) -> list[Cell]:
        return [
            Cell(setup=Setup(scenario=name, until_s=self.until_s), policy=OWN)
            for name in builtin_names()
        ]

    def cells(self, store: Store) -> Iterator[Cell]:
        """Wattline in every scenario, as it ships."""
        yield from self._cells()

    def page(self, store: Store) -> list[str]:
        """One row per scenario."""
        rows = []
        worst = 0.0
        for cell in self._cells():
            outcome = store.get(cell)
            if outcome is None:
                rows.append([f"`{cell.setup.scenario}`", *("-",) * 6])
                continue
            result = outcome["result"]
            worst = max(worst, result["over_budget_enforced_ws"])
            rows.append(
                [
                    f"`{cell.setup.scenario}`",
                    f"{100 * result['budget_fraction']:.0f} %",
                    f"{result['over_budget_enforced_ws']:,.1f}",
                    f"{result['exposure_enforced_ws']:,.0f}",
                    f"{result['over_budget_draw_ws']:,.0f}",
                    f"{result['goodput_rps']:.2f}",
                    f"{100 * result['slo_attainment']:.1f}",
                ]
            )
        verdict_line = (
            "`wattline` never enforced more than the budget."
            if worst == 0.0
            else f"`wattline` enforced up to **{worst:,.1f} W·s** over the budget: this must be 0."
        )
        head = [
            "scenario",
            "budget",
            "over budget, W·s",
            "exposure, W·s",
            "draw over budget, W·s",
            "goodput, req/s",
            "attainment %",
        ]
        return [
            "## Inside the budget",
            "",
            "`wattline` in every built-in scenario as it ships, at the scenario's own budget. "
            "*Over budget* is what an action of ours caused or failed to mend in time and must be "
            "0; *exposure* is what outside events did (a cut of the budget, a lost node, a rival "
            "writer). Draw may exceed a limit for moments, because a limit is not a ceiling: that "
            "is what the guard band is for.",
            "",
            *table(head, rows),
            verdict_line,
            "",
        ]
