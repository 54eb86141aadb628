"""Breadth-first search over all states of a model, with the shortest trace of what goes wrong.

A model says what its first state is, which steps are possible in a state, and which of several
equal states stands for all of them (`canonical`). States are compared whole, not by a digest, so
that no two different states are ever taken for one. A search is exhaustive only if it ends by
itself: one that meets the bound on states says so.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from wattline.core.errors import SafetyError

State = TypeVar("State", bound=Hashable)
_NONE = -1
_PROGRESS_EVERY = 20_000


class Model(Protocol[State]):
    """What is explored. All methods are pure: equal states have equal steps."""

    def initial(self) -> State:
        """First state."""
        ...

    def steps(self, state: State) -> Iterable[tuple[str, State, str | None]]:
        """Every possible next event: its name, the state after it, what it breaks or None."""
        ...

    def canonical(self, state: State) -> State:
        """State that stands for `state` and all states that differ from it in names only."""
        ...

    def flaw(self, state: State) -> str | None:
        """What is wrong with `state` itself, looked at once for each distinct state."""
        ...

    def describe(self, state: State) -> str:
        """One line for a human."""
        ...


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule with the fewest events that lead to it; one line for each event."""

    what: str
    events: tuple[str, ...]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        """The trace, one event a line."""
        return "\n".join((*self.lines, f"=> {self.what}"))


@dataclass(frozen=True, slots=True)
class Exploration:
    """What a search saw. `exhaustive`: every reachable state was visited."""

    states: int
    transitions: int
    depth: int
    exhaustive: bool
    violation: Violation | None


@dataclass(slots=True)
class _Visited(Generic[State]):
    """States in the order of their discovery, each with the number of the one before it."""

    order: list[State]
    numbers: dict[State, int]
    parents: array[int]

    def path(self, number: int) -> list[State]:
        """States from the first to `number`."""
        states = []
        while number != _NONE:
            states.append(self.order[number])
            number = self.parents[number]
        return states[::-1]


def explore(
    model: Model[State],
    *,
    most_states: int,
    progress: Callable[[int, int], None] | None = None,
) -> Exploration:
    """Visit every state of `model`, nearest first, until a rule breaks or `most_states` are seen.

    `progress` is called now and then with the states found and the states still to be looked at.
    """
    first = model.canonical(model.initial())
    visited = _Visited([first], {first: 0}, array("q", [_NONE]))
    order, numbers, parents = visited.order, visited.numbers, visited.parents
    transitions, depth, level_end, number = 0, 0, 1, 0
    while number < len(order):
        if number == level_end:
            depth, level_end = depth + 1, len(order)
        state = order[number]
        flaw = model.flaw(state)
        if flaw is not None:
            violation = _trace(model, visited.path(number), None, flaw)
            return Exploration(len(order), transitions, depth, False, violation)
        for event, raw, broken in model.steps(state):
            transitions += 1
            if broken is not None:
                violation = _trace(model, visited.path(number), event, broken)
                return Exploration(len(order), transitions, depth + 1, False, violation)
            after = model.canonical(raw)
            if after not in numbers:
                numbers[after] = len(order)
                order.append(after)
                parents.append(number)
        if len(order) > most_states:
            return Exploration(len(order), transitions, depth, False, None)
        number += 1
        if progress is not None and number % _PROGRESS_EVERY == 0:
            progress(len(order), len(order) - number)
    return Exploration(len(order), transitions, depth, True, None)


def _trace(model: Model[State], path: list[State], last: str | None, what: str) -> Violation:
    """Walk `path` again under the names of one history, so that a trace does not swap its nodes.

    Where a history's own names lead nowhere, it goes on under those of the state on the path.
    """
    state = model.initial()
    events: list[str] = []
    lines = [_line("start", model.describe(state))]
    for wanted in path[1:]:
        found = _step_to(model, state, wanted)
        if found is None:
            found = _step_to(model, model.canonical(state), wanted)
        if found is None:
            raise SafetyError(f"no step leads from {state} to {wanted}: a bug of the model")
        event, state = found
        events.append(event)
        lines.append(_line(event, model.describe(state)))
    if last is not None:
        steps = list(model.steps(state)) + list(model.steps(path[-1]))
        event, state = next((event, raw) for event, raw, broken in steps if broken == what)
        events.append(event)
        lines.append(_line(event, model.describe(state)))
    return Violation(what, tuple(events), tuple(lines))


def _step_to(model: Model[State], state: State, wanted: State) -> tuple[str, State] | None:
    for event, raw, _ in model.steps(state):
        if model.canonical(raw) == wanted:
            return event, raw
    return None


def _line(event: str, after: str) -> str:
    return f"{event:<66} {after}"
