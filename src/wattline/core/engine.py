"""The seam between models of an engine and everything that uses them.

An `EngineModel` says what one forward pass of one replica costs under a setting. The plant runs
passes with it, `capacity` derives request rates from it, so both see the same physics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from wattline.core.fleet import Setting


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """Work of one iteration of one replica.

    `prefill_tokens` prompt tokens are computed; `prefill_context` is the sum over those tokens of
    the number of tokens each attends to (a prompt of n uncached tokens: n*(n+1)/2).
    `decode_batch` sequences get one token each and read `decode_kv_tokens` tokens of context
    together.
    """

    prefill_tokens: int = 0
    prefill_context: float = 0.0
    decode_batch: int = 0
    decode_kv_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class PassCost:
    """Time and mean power per GPU of a forward pass; `clock` is the settled fraction of maximum."""

    duration_s: float
    power_w: float
    clock: float


class EngineModel(Protocol):
    """Time and watts of forward passes on one replica.

    Implementations are frozen dataclasses with a literal `kind`, hashable, so that a recording can
    carry them and results can be memoised.
    """

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of context that fit in the replica's memory beside the weights."""
        ...

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes that one token of context occupies: what a transfer between replicas moves."""
        ...

    @property
    def max_num_seqs(self) -> int:
        """Most sequences in one decode batch."""
        ...

    @property
    def max_batched_tokens(self) -> int:
        """Most tokens (prompt chunk plus one per decoding sequence) in one pass."""
        ...

    @property
    def idle_w(self) -> float:
        """Watts per GPU with the model loaded and no request in flight."""
        ...

    def cost(self, work: ForwardPass, setting: Setting, derate: float = 1.0) -> PassCost:
        """Cost of one pass under `setting`; `derate` < 1 is a GPU slowed by heat or hardware."""
        ...

    def __hash__(self) -> int:
        """Equal engines are equal keys."""
        ...
