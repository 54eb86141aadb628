"""Prefix cache of one replica: which blocks of prompts are still in its memory."""

from __future__ import annotations


class PrefixCache:
    """Blocks by hash, least recently used out first. A dict keeps them in order of use."""

    __slots__ = ("_blocks", "_capacity", "_tokens_per_block")

    def __init__(self, capacity_tokens: int, tokens_per_block: int) -> None:
        self._tokens_per_block = tokens_per_block
        self._capacity = capacity_tokens // tokens_per_block
        self._blocks: dict[int, None] = {}

    def match(self, hashes: tuple[int, ...]) -> int:
        """Tokens of the longest cached prefix."""
        count = 0
        for block in hashes:
            if block not in self._blocks:
                break
            count += 1
        return count * self._tokens_per_block

    def insert(self, hashes: tuple[int, ...]) -> None:
        """Keep the blocks of a computed prompt, the first ones longest."""
        blocks = self._blocks
        for block in reversed(hashes):
            blocks.pop(block, None)
            blocks[block] = None
        excess = len(blocks) - self._capacity
        if excess > 0:
            for block in list(blocks)[:excess]:
                del blocks[block]

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()
