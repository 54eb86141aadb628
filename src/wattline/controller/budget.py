"""The budget in force: by configuration, by the time of the week, or by a call at run time.

Every change has a new version, and versions never fall, restarts included: nodes that have seen a
budget obey no raise that was granted under an older one.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from wattline.controller.settings import BudgetSpec, BudgetWindow
from wattline.core.errors import InputError, WattlineError
from wattline.core.snapshot import Budget
from wattline.drivers.json_fields import parse
from wattline.drivers.trusted_files import read_trusted, replace_file

log = logging.getLogger(__name__)

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """A budget that somebody set at run time. Times are seconds since 1970."""

    total_w: float
    by: str
    why: str
    since_s: float
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class InForce:
    """The budget of a tick, and where it comes from in a few words."""

    budget: Budget
    cause: str


class BudgetDesk:
    """Answers what the budget is now. Safe to call from any thread.

    `path` keeps version and override over restarts. Raises InputError for a file that is damaged.
    """

    def __init__(self, spec: BudgetSpec, path: Path, lowest_w: float) -> None:
        """`lowest_w`: what all GPUs take at their lowest limits; no budget may be less."""
        self._lock = threading.RLock()
        self._spec = spec
        self._path = path
        self._lowest_w = lowest_w
        self._override: Override | None = None
        self._version = 0
        self._in_force: InForce | None = None
        self._unsaved = True
        self._save_why: str | None = None
        self._read()

    def now(self, now_s: float) -> InForce:
        """The budget at `now_s`."""
        with self._lock:
            ended = self._override is not None and self._ended(self._override, now_s)
            if ended:
                log.info("the budget set at run time has ended", extra={"audit": True})
                self._override = None
            total_w, cause = self._wanted(now_s)
            before = self._in_force
            guard_w = round(total_w * self._spec.guard_percent / 100.0, 3)
            same = before is not None and (
                before.budget.total_w == total_w
                and before.budget.guard_w == guard_w
                and before.budget.rise_w_per_s == self._spec.rise_w_per_s
            )
            if before is None or not same:
                self._version += 1
                self._unsaved = True
                log.info("budget", extra={"total_w": total_w, "cause": cause, "audit": True})
            if self._unsaved or ended:
                self._save_quietly()
            budget = Budget(
                total_w=total_w,
                guard_w=guard_w,
                version=self._version,
                rise_w_per_s=self._spec.rise_w_per_s,
            )
            self._in_force = InForce(budget, cause)
            return self._in_force

    def above(self, version: int) -> None:
        """Number budgets above `version`: a node has seen it, or more."""
        with self._lock:
            if version > self._version:
                self._version = version
                self._in_force = None

    def set(self, override: Override) -> None:
        """Take a budget from now on; InputError if no fleet of this size can keep it.

        It is on disk before it is in force, so that a restart does not forget a cut. WattlineError
        when the disk refuses.
        """
        least_w = self._lowest_w / (1.0 - self._spec.guard_percent / 100.0)
        if override.total_w < least_w:
            remedy = f"all GPUs at their lowest limits and the guard take {least_w:,.0f} W"
            raise InputError("total_w", override.total_w, remedy)
        with self._lock:
            self._save(self._version, override)
            self._override = override

    def clear(self) -> bool:
        """Go back to configuration and schedule; False if nothing had been set."""
        with self._lock:
            had = self._override is not None
            self._save(self._version, None)
            self._override = None
            return had

    def reload(self, spec: BudgetSpec) -> None:
        """Another configuration from now on."""
        with self._lock:
            self._spec = spec

    @property
    def override(self) -> Override | None:
        """What was set at run time."""
        with self._lock:
            return self._override

    def _wanted(self, now_s: float) -> tuple[float, str]:
        if self._override is not None:
            return self._override.total_w, f"set by {self._override.by}: {self._override.why}"
        window = window_at(self._spec, now_s)
        if window is not None:
            return window.total_w, f"schedule {window.start}-{window.end}"
        return self._spec.total_w, "configuration"

    @staticmethod
    def _ended(override: Override, now_s: float) -> bool:
        return override.until_s is not None and now_s >= override.until_s

    # On disk

    def _read(self) -> None:
        try:
            content = read_trusted(self._path, max_bytes=_MOST_BYTES)
        except FileNotFoundError:
            return
        except OSError as error:
            raise WattlineError(f"{self._path}: {error.strerror or error}") from None
        fields = parse(content, str(self._path))
        self._version = fields.count("version")
        entry = fields.object("override")
        if entry is not None:
            if entry.number("total_w", 1e9) < 1.0:
                raise entry.refusal("total_w", "a budget has at least 1 W")
            for name in ("by", "why"):
                if not entry.text(name).isprintable():
                    raise entry.refusal(name, "must be printable, on one line")
            self._override = Override(
                total_w=entry.number("total_w", 1e9),
                by=entry.text("by"),
                why=entry.text("why"),
                since_s=entry.number("since_s", 1e12),
                until_s=entry.number_or_none("until_s", 1e12),
            )

    def _save(self, version: int, override: Override | None) -> None:
        document = {
            "version": version,
            "override": None
            if override is None
            else {
                "total_w": override.total_w,
                "by": override.by,
                "why": override.why,
                "since_s": override.since_s,
                "until_s": override.until_s,
            },
        }
        try:
            replace_file(self._path, json.dumps(document).encode() + b"\n")
        except OSError as error:
            raise WattlineError(
                f"{self._path}: {error.strerror or error}: the budget is not changed"
            ) from None

    def _save_quietly(self) -> None:
        """Keep the version; on a full disk it is tried again, and a restart asks the nodes."""
        try:
            self._save(self._version, self._override)
        except WattlineError as error:
            if self._save_why is None:
                log.warning("the budget's version is not kept", extra={"why": str(error)})
            self._save_why = str(error)
            return
        self._unsaved, self._save_why = False, None


def window_at(spec: BudgetSpec, now_s: float) -> BudgetWindow | None:
    """The first window of the schedule that holds at `now_s`."""
    local = datetime.fromtimestamp(now_s, ZoneInfo(spec.timezone))
    minute = local.hour * 60 + local.minute
    today = _DAYS[local.weekday()]
    yesterday = _DAYS[(local - timedelta(days=1)).weekday()]
    for window in spec.schedule:
        start, end = _minute(window.start), _minute(window.end)
        if start < end:
            holds = today in window.days and start <= minute < end
        else:
            holds = (today in window.days and minute >= start) or (
                yesterday in window.days and minute < end
            )
        if holds:
            return window
    return None


def _minute(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)
