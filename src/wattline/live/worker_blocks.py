"""The prefix cache of a live worker: blocks of prompt tokens, and what a router wants to know."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from wattline.sim.plant.prefix import PrefixCache


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that one prompt added, in order. `parent`: the block before the first; None: none."""

    hashes: tuple[int, ...]
    token_ids: tuple[int, ...]
    parent: int | None


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks that made room."""

    hashes: tuple[int, ...]


def block_hashes(token_ids: Sequence[int], tokens_per_block: int) -> tuple[int, ...]:
    """One signed 64-bit number per whole block of a prompt, of it and of all before it."""
    raw = array("I", token_ids).tobytes()
    width = 4 * tokens_per_block
    before, hashes = b"", []
    for start in range(0, len(raw) - width + 1, width):
        before = blake2b(before + raw[start : start + width], digest_size=8).digest()
        hashes.append(int.from_bytes(before, "little", signed=True))
    return tuple(hashes)


class LiveCache(PrefixCache):
    """The plant's prefix cache, which also keeps a list of what came and went.

    A router wants to know the tokens of a block, which the plant does not keep: they are told for
    the time a request is in the engine.
    """

    __slots__ = ("_prompts", "_width", "events")

    def __init__(self, tokens_per_block: int) -> None:
        super().__init__(tokens_per_block)
        self._width = tokens_per_block
        self._prompts: dict[tuple[int, ...], Sequence[int]] = {}
        self.events: list[Stored | Removed] = []

    def learn(self, hashes: tuple[int, ...], token_ids: Sequence[int]) -> None:
        """A prompt with these blocks is in the engine."""
        self._prompts[hashes] = token_ids

    def forget(self, hashes: tuple[int, ...]) -> None:
        """No request with this prompt is in the engine any more."""
        self._prompts.pop(hashes, None)

    def insert(self, hashes: tuple[int, ...], room_tokens: int) -> None:
        """Keep the blocks of a computed prompt, and note those that were not there."""
        had = [block in self._blocks for block in hashes]
        tokens = self._prompts.get(hashes)
        if tokens is not None:
            self.events.extend(self._runs(hashes, had, tokens))
        super().insert(hashes, room_tokens)

    def _runs(
        self, hashes: tuple[int, ...], had: list[bool], tokens: Sequence[int]
    ) -> list[Stored]:
        """Stretches of new blocks, each after a block that is there or at the start."""
        runs, start = [], 0
        while start < len(hashes):
            if had[start]:
                start += 1
                continue
            end = start
            while end < len(hashes) and not had[end]:
                end += 1
            parent = hashes[start - 1] if start else None
            span = tokens[start * self._width : end * self._width]
            runs.append(Stored(hashes[start:end], tuple(span), parent))
            start = end
        return runs

    def trim(self, room_tokens: int) -> None:
        """Drop what does not fit, and note it."""
        excess = len(self._blocks) - room_tokens // self._tokens_per_block
        if excess > 0:
            self.events.append(Removed(tuple(self._blocks)[:excess]))
        super().trim(room_tokens)

    def clear(self) -> None:
        """Forget everything, and say so."""
        if self._blocks:
            self.events.append(Removed(tuple(self._blocks)))
        super().clear()

    def take(self) -> list[Stored | Removed]:
        """What came and went since the last call, in order."""
        events, self.events = self.events, []
        return events
