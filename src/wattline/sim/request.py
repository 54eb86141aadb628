"""A request of a trace, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the trace has it.

    time_s counts from the start of the trace. prefix_hashes identify blocks of the prompt in order
    (512 tokens each in Mooncake's traces); empty when the trace has none.
    """

    time_s: float
    input_tokens: int
    output_tokens: int
    deployment: int = 0
    prefix_hashes: tuple[int, ...] = ()
