"""Machines as values: a whole machine to nested tuples and back.

An explorer compares and stores states and goes back to them at will. Every attribute of a machine
counts, so nothing that could change its behaviour is left out of a comparison.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, cast

_LEAVES = (int, float, str, bytes, bool, type(None), Enum)
Frozen = Any
"""A leaf, or a tuple of a type and its frozen contents."""


def freeze(value: Any) -> Frozen:
    """Return `value` as nested tuples that can be hashed.

    Dicts and sets are sorted by key, since no machine may behave by order of insertion. Raises
    TypeError for what is not plain data.
    """
    kind = type(value)
    if isinstance(value, _LEAVES) or _is_frozen_dataclass(value) or hasattr(kind, "_fields"):
        return value
    if kind in (list, tuple, deque):
        return (kind, tuple([freeze(item) for item in value]))
    if kind is dict:
        return (kind, tuple([(key, freeze(item)) for key, item in sorted(value.items(), key=_key)]))
    if kind in (set, frozenset):
        return (kind, tuple(sorted(value)))
    if callable(value) or isinstance(value, type):
        raise TypeError(f"{kind.__name__} is not plain data")
    names = _names(value)
    return (kind, tuple([(name, freeze(getattr(value, name))) for name in names]))


def thaw(frozen: Frozen, leaf: Callable[[Any], Any] = lambda value: value) -> Any:
    """Return a new value equal to the one that was frozen, sharing nothing that can change.

    `leaf` is applied to every leaf and to every key of a dict; it serves to change names.
    """
    if type(frozen) is not tuple:
        return leaf(frozen)
    kind, contents = cast("tuple[type, tuple[Any, ...]]", frozen)
    if kind in (list, tuple, deque):
        return kind([thaw(item, leaf) for item in contents])
    if kind is dict:
        return dict(sorted([(leaf(key), thaw(item, leaf)) for key, item in contents], key=_key))
    if kind in (set, frozenset):
        return kind([leaf(item) for item in contents])
    machine: Any = object.__new__(kind)
    for name, item in contents:
        object.__setattr__(machine, name, thaw(item, leaf))
    return machine


def _key(item: tuple[Any, Any]) -> Any:
    return item[0]


def _is_frozen_dataclass(value: Any) -> bool:
    if not is_dataclass(value) or isinstance(value, type):
        return False
    return bool(value.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def _names(value: Any) -> list[str]:
    """Names of all attributes, those in slots of base classes included."""
    names = [
        name
        for kind in type(value).__mro__
        for name in getattr(kind, "__slots__", ())
        if name not in ("__dict__", "__weakref__") and hasattr(value, name)
    ]
    return names + sorted(getattr(value, "__dict__", {}))
