"""What frontends counted between two looks at their pages, as one deployment's demand.

A frontend that started anew counts from zero: what it counts now is new, and what the one before
counted after its last page is lost; the delta says so. Prompts are observed at their first token
and answers at their end, arrivals at once: token sums are therefore the mean of those observed in
the window times the number of those that arrived (or ended), so that dividing one by the other
gives the mean request also while requests wait or are rejected.

Percentiles come from buckets, by a straight line inside the bucket that holds the rank (as
Prometheus' `histogram_quantile` does), except that the window's mean stands for the median where it
lies in the same bucket, which is the nearer one where most observations are alike. The truth lies
between the bucket's bounds, which in Dynamo's histograms are a factor of 1.6 to 2.3 apart. Beyond
the last finite bound that bound is given: a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

from wattline.drivers.dynamo.frontend import FrontendScrape
from wattline.drivers.dynamo.pages import EMPTY, Histogram, Missing, add_histograms

_LEAST_WINDOW_S = 1e-3
MOST_REQUESTS = 1e9
"""In one window: thousands of times what any fleet sees. More is a page that is wrong."""
MOST_TOKENS = 1e12
MOST_TOKENS_EACH = 1e7
"""Of the mean request: one page that says more would stand in the plan for minutes."""


@dataclass(frozen=True, slots=True)
class Quantile:
    """An estimate and the bounds of its bucket, in seconds; `high_s` may be infinite."""

    value_s: float
    low_s: float
    high_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendDelta:
    """One model's traffic at all its frontends over `window_s`; fields as in `DemandView`.

    What cannot be known is None, with its reason in `missing`. `notes` say what a value rests on
    where that is not a plain difference of counters. age_s: since the oldest of the newer pages.
    in_flight: now. The means are exact, unlike the percentiles. itl is over gaps between tokens.
    """

    window_s: float
    age_s: float
    sources: tuple[str, ...]
    restarted: tuple[str, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    arrivals: int | None
    input_tokens_sum: int | None
    cached_tokens_sum: int | None
    completions: int | None
    output_tokens_sum: int | None
    rejected: int | None
    in_flight: int | None
    ttft_p50: Quantile | None
    ttft_p99: Quantile | None
    ttft_mean_s: float | None
    itl_p50: Quantile | None
    itl_p99: Quantile | None
    itl_mean_s: float | None


def frontend_delta(
    before: Sequence[FrontendScrape], after: Sequence[FrontendScrape], now_s: float
) -> FrontendDelta:
    """Both sequences are of one model, at most one scrape per frontend; order does not matter.

    A frontend of `after` that `before` does not have counts from its next page on, unless it is so
    young that all it counted is new. One that is only in `before` is left out: the caller knows
    why it did not answer.
    """
    earlier = {scrape.source: scrape for scrape in before}
    since_s = max((scrape.at_s for scrape in before), default=None)
    notes: list[str] = []
    restarted: list[str] = []
    pairs: list[tuple[FrontendScrape | None, FrontendScrape]] = []
    for scrape in after:
        old = earlier.get(scrape.source)
        if old is not None and scrape.at_s - old.at_s < _LEAST_WINDOW_S:
            notes.append(f"{scrape.source}: no newer page")
        elif old is not None and not _is_new(old, scrape):
            pairs.append((old, scrape))
        elif old is not None or _born_after(scrape, since_s):
            pairs.append((None, scrape))
            if old is not None:
                restarted.append(scrape.source)
                notes.append(f"{scrape.source}: started anew; its last counts before are lost")
        else:
            notes.append(f"{scrape.source}: seen for the first time; counts from the next page on")
    return _delta(_Window(pairs), _window_s(pairs, earlier), now_s, restarted, notes)


def quantile(histogram: Histogram, share: float, *, mean: bool = False) -> Quantile | None:
    """The `share` quantile; None without observations. `mean`: see this module's text."""
    rank = share * histogram.count
    if rank <= 0.0:
        return None
    place = next(i for i, count in enumerate(histogram.counts) if count >= rank)
    low = histogram.bounds[place - 1] if place else min(0.0, histogram.bounds[0])
    high = histogram.bounds[place]
    below = histogram.counts[place - 1] if place else 0.0
    if not isfinite(high):
        return Quantile(low, low, high)
    average = histogram.total / histogram.count
    if mean and low <= average <= high:
        return Quantile(average, low, high)
    part = (rank - below) / (histogram.counts[place] - below)
    return Quantile(low + (high - low) * part, low, high)


class _Window:
    """Differences of pairs of scrapes, added up; collects why some are missing."""

    def __init__(self, pairs: Sequence[tuple[FrontendScrape | None, FrontendScrape]]) -> None:
        self.pairs = pairs
        self.missing: list[str] = []
        self.notes: list[str] = []

    def number(self, read: Callable[[FrontendScrape], float | Missing]) -> int | None:
        """Growth of a counter."""
        total = 0.0
        for old, new in self.pairs:
            now = read(new)
            was = 0.0 if old is None else read(old)
            if isinstance(now, Missing) or isinstance(was, Missing):
                self._say(now, was)
                return None
            if now < was:
                self.missing.append(f"{new.source}: a counter fell and the frontend did not start")
                return None
            total += now - was
        if total > MOST_REQUESTS:
            self.missing.append(f"{new.source}: {total:.3g} requests in one window cannot be")
            return None
        return round(total) if self.pairs else None

    def started(self) -> int | None:
        """Arrivals: a frontend that changed the series it counts them with has none."""
        for old, new in self.pairs:
            if old is not None and old.started_name != new.started_name and old.started != 0.0:
                self.missing.append(f"{new.source}: {old.started_name} became {new.started_name}")
                return None
            if not new.started_name.endswith("_started_total"):
                self.notes.append(f"{new.source}: arrivals are counted when requests end")
        return self.number(lambda scrape: scrape.started)

    def histogram(
        self, read: Callable[[FrontendScrape], Histogram | Missing]
    ) -> tuple[Histogram, Histogram] | None:
        """What was observed in the window, and since the start."""
        window = lifetime = EMPTY
        for old, new in self.pairs:
            now = read(new)
            was = EMPTY if old is None else read(old)
            if isinstance(now, Missing) or isinstance(was, Missing):
                self._say(now, was)
                return None
            grown = _minus(now, was)
            both = None if grown is None else add_histograms(window, grown)
            ever = add_histograms(lifetime, now)
            if both is None or ever is None:
                self.missing.append(f"{new.source}: a histogram fell, or has other bounds")
                return None
            window, lifetime = both, ever
        return (window, lifetime) if self.pairs else None

    def tokens(
        self, number: int | None, read: Callable[[FrontendScrape], Histogram | Missing], what: str
    ) -> int | None:
        """Mean of what was observed, times `number` of requests."""
        seen = self.histogram(read)
        if number is None or seen is None:
            return None
        window, lifetime = seen
        if number == 0:
            return 0
        if window.count > 0.0:
            return self._times(number, window.total / window.count, what)
        if lifetime.count > 0.0:
            self.notes.append(f"{what}: none observed in the window; the mean since the start")
            return self._times(number, lifetime.total / lifetime.count, what)
        self.missing.append(f"{what}: none observed since the start")
        return None

    def _times(self, number: int, mean: float, what: str) -> int | None:
        """None, and why, for what no requests can hold: infinite and negative sums too."""
        if not (0.0 <= mean <= MOST_TOKENS_EACH and number * mean <= MOST_TOKENS):
            self.missing.append(f"{what}: {mean:.3g} in the mean of {number} requests cannot be")
            return None
        return round(number * mean)

    def _say(self, *values: object) -> None:
        self.missing.extend(each.reason for each in values if isinstance(each, Missing))


def _delta(
    window: _Window, window_s: float, now_s: float, restarted: list[str], notes: list[str]
) -> FrontendDelta:
    arrivals = window.started()
    completions = window.number(lambda scrape: scrape.completed)
    inputs = window.tokens(arrivals, lambda scrape: scrape.prompts, "prompt tokens")
    cached = window.tokens(arrivals, lambda scrape: scrape.cached, "cached tokens")
    outputs = window.tokens(completions, lambda scrape: scrape.answers, "output tokens")
    ttft = window.histogram(lambda scrape: scrape.ttft)
    itl = window.histogram(lambda scrape: scrape.itl)
    rejected = window.number(lambda scrape: scrape.rejected)
    if not window.pairs:
        window.missing.append("no two pages of one frontend to compare")
    return FrontendDelta(
        window_s=round(window_s, 6),
        age_s=round(max((now_s - new.at_s for _, new in window.pairs), default=0.0), 6),
        sources=tuple(new.source for _, new in window.pairs),
        restarted=tuple(restarted),
        missing=tuple(dict.fromkeys(window.missing)),
        notes=tuple(dict.fromkeys([*notes, *window.notes])),
        arrivals=arrivals,
        input_tokens_sum=inputs,
        cached_tokens_sum=cached if cached is None or inputs is None else min(cached, inputs),
        completions=completions,
        output_tokens_sum=outputs,
        rejected=rejected,
        in_flight=_in_flight(window.pairs),
        ttft_p50=None if ttft is None else quantile(ttft[0], 0.5, mean=True),
        ttft_p99=None if ttft is None else quantile(ttft[0], 0.99),
        ttft_mean_s=_mean(ttft),
        itl_p50=None if itl is None else quantile(itl[0], 0.5, mean=True),
        itl_p99=None if itl is None else quantile(itl[0], 0.99),
        itl_mean_s=_mean(itl),
    )


def _is_new(old: FrontendScrape, new: FrontendScrape) -> bool:
    """True when the frontend started anew between the two: by its id, its uptime, its arrivals.

    A single other counter that fell is no sign of it: all that was counted since the start would
    be taken for new.
    """
    if old.identity is not None and new.identity is not None and old.identity != new.identity:
        return True
    if old.uptime_s is not None and new.uptime_s is not None:
        return new.uptime_s < old.uptime_s
    if isinstance(old.started, Missing) or isinstance(new.started, Missing):
        return False
    return new.started < old.started


def _born_after(scrape: FrontendScrape, since_s: float | None) -> bool:
    """True when all that a frontend counted is newer than the other frontends' older pages."""
    if since_s is None or scrape.uptime_s is None:
        return False
    return scrape.at_s - scrape.uptime_s >= since_s


def _window_s(
    pairs: Sequence[tuple[FrontendScrape | None, FrontendScrape]],
    earlier: Mapping[str, FrontendScrape],
) -> float:
    """Mean of the frontends' windows; of one that is seen for the first time, its age."""
    spans = []
    for _, new in pairs:
        was = earlier.get(new.source)
        if was is not None:
            spans.append(new.at_s - was.at_s)
    if not spans:
        spans = [new.uptime_s for _, new in pairs if new.uptime_s is not None]
    return sum(spans) / len(spans) if spans else 0.0


def _minus(now: Histogram, was: Histogram) -> Histogram | None:
    """Growth of a histogram; None when bounds differ or a count fell."""
    if not was.bounds:
        return now
    if now.bounds != was.bounds:
        return None
    counts = tuple(a - b for a, b in zip(now.counts, was.counts, strict=True))
    steps = [counts[0], *(high - low for low, high in pairwise(counts))]
    if min(steps) < 0.0:
        return None
    return Histogram(now.bounds, counts, max(0.0, now.total - was.total))


def _in_flight(pairs: Sequence[tuple[FrontendScrape | None, FrontendScrape]]) -> int | None:
    total = 0.0
    for _, new in pairs:
        if isinstance(new.in_flight, Missing):
            return None
        total += new.in_flight
    return round(total) if pairs and 0.0 <= total <= MOST_REQUESTS else None


def _mean(seen: tuple[Histogram, Histogram] | None) -> float | None:
    if seen is None or seen[0].count <= 0.0:
        return None
    mean = seen[0].total / seen[0].count
    return mean if isfinite(mean) else None
