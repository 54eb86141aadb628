"""Prefix cache of one replica: which blocks of prompts are still in its memory."""

from __future__ import annotations


class PrefixCache:
    """Blocks by hash, least recently used out first. A dict keeps them in order of use.

    Blocks live in the room that live requests leave, so that every use says how large that is.
    """

    __slots__ = ("_blocks", "_tokens_per_block")

    def __init__(self, tokens_per_block: int) -> None:
        self._tokens_per_block = tokens_per_block
        self._blocks: dict[int, None] = {}

    def match(self, hashes: tuple[int, ...]) -> int:
        """Tokens of the longest cached prefix."""
        count = 0
        for block in hashes:
            if block not in self._blocks:
                break
            count += 1
        return count * self._tokens_per_block

    def trim(self, room_tokens: int) -> None:
        """Drop what does not fit into `room_tokens`."""
        excess = len(self._blocks) - room_tokens // self._tokens_per_block
        if excess > 0:
            for block in list(self._blocks)[:excess]:
                del self._blocks[block]

    def insert(self, hashes: tuple[int, ...], room_tokens: int) -> None:
        """Keep the blocks of a computed prompt, the first ones longest."""
        blocks = self._blocks
        for block in reversed(hashes):
            blocks.pop(block, None)
            blocks[block] = None
        self.trim(room_tokens)

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()
