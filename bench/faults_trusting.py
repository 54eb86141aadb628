"""A coordinator that raises before it has verified: what the observer must find to be over budget.

    python bench/faults_trusting.py SPEC.json

It takes every raise as affordable at once, as one would that trusts its own requests. For
`bench/faults.py --sabotage trusting` only.
"""

from __future__ import annotations

from wattline.grants.ledger import Ledger
from wattline.virtual import coordinator


class TrustingLedger(Ledger[str]):
    """Books as the real one does, and never finds that watts are missing."""

    def fits(self, gpu: str, watts: float) -> bool:
        """Anything does."""
        return True

    @property
    def _free_mw(self) -> int:
        return 10**9


if __name__ == "__main__":
    setattr(coordinator, "Ledger", TrustingLedger)  # noqa: B010  # the type is the point here
    coordinator.main()
