"""What the mean request of a deployment looks like."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mix:
    """Mean request: prompt tokens, output tokens, and the share of the prompt found in a cache."""

    input_tokens: float
    output_tokens: float
    cached_fraction: float = 0.0

    @property
    def computed_tokens(self) -> float:
        """Prompt tokens that a prefill has to compute."""
        return self.input_tokens * (1.0 - self.cached_fraction)
