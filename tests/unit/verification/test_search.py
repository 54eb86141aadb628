"""The search itself, on a model small enough to count by hand."""

from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from wattline.verification.search import explore

State = tuple[int, int]


@dataclass(frozen=True)
class Counters:
    """Two counters that go up to `top`; neither may reach `forbidden`."""

    top: int
    forbidden: int = -1
    alike: bool = True

    def initial(self) -> State:
        return (0, 0)

    def steps(self, state: State) -> Iterable[tuple[str, State, str | None]]:
        for which in (0, 1):
            if state[which] < self.top:
                after = list(state)
                after[which] += 1
                yield f"up {which}", (after[0], after[1]), None

    def canonical(self, state: State) -> State:
        return (min(state), max(state)) if self.alike else state

    def flaw(self, state: State) -> str | None:
        return "too high" if self.forbidden in state else None

    def describe(self, state: State) -> str:
        return f"{state[0]} and {state[1]}"


def test_every_state_is_visited_once() -> None:
    found = explore(Counters(top=3, alike=False), most_states=100)
    assert (found.states, found.depth, found.exhaustive) == (16, 6, True)


def test_states_that_differ_in_names_only_are_one() -> None:
    found = explore(Counters(top=3), most_states=100)
    assert (found.states, found.exhaustive) == (10, True)


def test_a_search_that_meets_its_bound_is_not_exhaustive() -> None:
    found = explore(Counters(top=30), most_states=20)
    assert not found.exhaustive
    assert found.violation is None


@pytest.mark.parametrize("alike", [True, False])
def test_a_violation_comes_with_the_fewest_events_under_the_names_of_one_history(
    alike: bool,
) -> None:
    found = explore(Counters(top=5, forbidden=3, alike=alike), most_states=100)
    assert found.violation is not None
    assert len(found.violation.events) == 3
    assert len(set(found.violation.events)) == 1
    assert str(found.violation).splitlines()[-1] == "=> too high"
    assert not found.exhaustive
