"""Names of the safety rules, as docs, tests and the explorer use them.

The numbers are those of "Safety: watts are leased" in docs/concepts/safety.md.
"""

from __future__ import annotations

from enum import StrEnum


class Rule(StrEnum):
    """What keeps the sum of bookings within the budget, whatever fails."""

    DURABLE_BEFORE_SENT = "1 durable before sent"
    ONE_INCARNATION = "1 a grant is for one incarnation"
    NEWEST_ONLY = "1 only the newest grant is obeyed"
    JOURNAL_BEFORE_WRITE = "1 journal before write"
    ECHO_PROVES = "1 only an answer proves"
    FREE_WATTS_ONLY = "2 a raise takes free watts only"
    VERIFY_BEFORE_FREE = "2 verify before free"
    SETTLE_BEFORE_FREE = "2 settle before free"
    WRITES_UNDER_WAY_ARE_HELD = "2 a write under way is held"
    SILENCE_FREES_NOTHING = "3 silence frees nothing"
    EXPIRY_FREES_NOTHING = "3 expiry frees nothing"
    ATTESTED_RELEASE = "3 attested release"
    RESTORE_IS_A_RAISE = "5 restoring is a raise"
    BOOKED_AS_FOUND = "6 booked as found"
    FOUND_IS_NOT_WRITTEN = "6 what was only found is not written"
    REPAIR_WITH_BACK_OFF = "6 repair with back-off"
    OWN_LOWERING_NEW_INCARNATION = "7 an own lowering starts a new incarnation"
    NEWEST_BUDGET = "7 no raise under an older budget"
    FIRST_KNOW_THEN_RAISE = "8 first know, then raise"
    EPOCH_FENCES = "8 an epoch fences"
    EXPOSURE_IS_STATED = "9 exposure is stated"
