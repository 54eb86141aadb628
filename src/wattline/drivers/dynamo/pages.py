"""Reads Prometheus text pages (format 0.0.4) and takes counters, gauges and histograms from them.

Not `prometheus_client.parser`: it walks lines character by character (20 ms for the 115 kB of one
frontend, where this takes 1), accepts repeated series, and renames counters. Here only the families
asked for are read in full. Of the others no more is checked than that each line starts with a name.
Timestamps on samples are checked and ignored: none of the pages read here carries any.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, isfinite, isnan

from wattline.drivers.pods import SourceError

MAX_PAGE_BYTES = 8 * 1024 * 1024
"""A frontend's page has 0.1 MB; it grows with models and workers."""
MAX_SERIES = 100_000
"""Of the families that are read in full."""
_MAX_LINE = 16 * 1024
_MOST_SHOWN = 80

# No quantifier can give back what it took, so that no line takes more than linear time.
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*+")
_LABEL = re.compile(
    r'[ \t]*+([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+"((?:[^"\\]|\\.)*+)"[ \t]*+(,|\Z)'
)
_NUMBER = re.compile(r"[-+]?(?:(?:\d++\.?\d*+|\.\d++)(?:[eE][-+]?\d++)?|inf|nan)", re.I | re.A)
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", '"': '"', "\\": "\\"}


class PageError(SourceError):
    """A page that cannot be read, or cannot be trusted: one line says where and why."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A value that is not there, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One series and its value, which may be NaN or infinite."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Cumulative counts of observations up to each bound; the last bound is infinite.

    `total` is the sum of what was observed.
    """

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float

    @property
    def count(self) -> float:
        """Number of observations."""
        return self.counts[-1] if self.counts else 0.0


EMPTY = Histogram((), (), 0.0)
"""Nothing observed yet; adds up with any bounds."""

Where = Mapping[str, str]
"""Labels and the values that they must have; `model` and `model_name` in any case of letters."""


@dataclass(frozen=True, slots=True)
class Page:
    """The samples of one page by name of series, families that were not asked for left out."""

    source: str
    samples: Mapping[str, tuple[Sample, ...]] = field(repr=False)

    def select(self, name: str, where: Where | None = None) -> list[Sample]:
        """Samples of one series name whose labels are as wanted."""
        found = self.samples.get(name, ())
        if not where:
            return list(found)
        return [sample for sample in found if _matches(sample.labels, where)]

    def counter(self, names: Sequence[str], where: Where | None = None) -> float | Missing:
        """Sum of a counter over the series that match, under the first of its names that has any.

        Missing where none has, or where a value is no count: negative, NaN or infinite.
        """
        found = self._first(names, where)
        if isinstance(found, Missing):
            return found
        for sample in found[1]:
            if not (isfinite(sample.value) and sample.value >= 0.0):
                return Missing(f"{self.source}: {found[0]} is {sample.value}")
        return sum(sample.value for sample in found[1])

    def gauge(self, names: Sequence[str], where: Where | None = None) -> float | Missing:
        """Sum of a gauge over the series that match; Missing as in `counter`, negative allowed."""
        found = self._first(names, where)
        if isinstance(found, Missing):
            return found
        for sample in found[1]:
            if not isfinite(sample.value):
                return Missing(f"{self.source}: {found[0]} is {sample.value}")
        return sum(sample.value for sample in found[1])

    def histogram(self, names: Sequence[str], where: Where | None = None) -> Histogram | Missing:
        """Histograms that match, added up, under the first name that has any."""
        for name in names:
            counts = self.select(f"{name}_count", where)
            if counts:
                return self._histogram(name, where, counts)
        return Missing(f"{self.source}: no {_named(names, where)}")

    def _histogram(
        self, name: str, where: Where | None, counts: Sequence[Sample]
    ) -> Histogram | Missing:
        totals = self.select(f"{name}_sum", where)
        if len(totals) != len(counts) or not all(isfinite(each.value) for each in totals):
            return Missing(f"{self.source}: {name} has no usable sum")
        buckets = self.select(f"{name}_bucket", where)
        groups: dict[tuple[tuple[str, str], ...], dict[float, float]] = {}
        for sample in buckets:
            bound = _bound(sample.labels)
            if bound is None:
                return Missing(f"{self.source}: {name} has a bucket without a bound")
            groups.setdefault(_key(sample.labels), {})[bound] = sample.value
        summed = EMPTY
        for each in counts:
            one = groups.pop(_key(each.labels), None)
            added = None if one is None else _one_histogram(one, each.value)
            both = None if added is None else add_histograms(summed, added)
            if both is None:
                return Missing(f"{self.source}: the buckets of {name} do not add up")
            summed = both
        if groups:
            return Missing(f"{self.source}: {name} has buckets without a count")
        return Histogram(summed.bounds, summed.counts, sum(each.value for each in totals))

    def _first(
        self, names: Sequence[str], where: Where | None
    ) -> tuple[str, list[Sample]] | Missing:
        for name in names:
            samples = self.select(name, where)
            if samples:
                return name, samples
        return Missing(f"{self.source}: no {_named(names, where)}")


def parse_page(body: bytes, source: str, families: Sequence[str]) -> Page:
    """The page's series whose names start with one of `families`.

    `source` stands in errors. PageError when the body is too large, is no such page, or holds
    anything that would make a sum wrong: a line of another form, a label or a series twice.
    """
    if len(body) > MAX_PAGE_BYTES:
        raise PageError(f"{source}: more than {MAX_PAGE_BYTES} bytes: not read")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise PageError(f"{source}: not UTF-8 at byte {error.start}") from None
    prefixes = tuple(families)
    samples: dict[str, list[Sample]] = {}
    seen: set[str] = set()
    # Not splitlines(), which also splits at characters that label values may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line[0] == "#" or line.isspace():
            continue
        name = _NAME.match(line)
        if name is None or len(line) > _MAX_LINE:
            raise _broken(source, number, line)
        if not line.startswith(prefixes):
            continue
        read = _sample(line, name.end())
        if read is None:
            raise _broken(source, number, line)
        identity, sample = read
        if identity in seen or len(seen) == MAX_SERIES:
            what = "twice" if identity in seen else f"one of more than {MAX_SERIES} series"
            raise PageError(f"{source}, line {number}: {_shown(identity)}: {what}")
        seen.add(identity)
        samples.setdefault(name.group(), []).append(sample)
    return Page(source, {name: tuple(each) for name, each in samples.items()})


def add_histograms(one: Histogram, other: Histogram) -> Histogram | None:
    """Both together; None when their bounds differ."""
    if not one.bounds or not other.bounds:
        kept = other if other.bounds else one
        return Histogram(kept.bounds, kept.counts, one.total + other.total)
    if one.bounds != other.bounds:
        return None
    counts = tuple(a + b for a, b in zip(one.counts, other.counts, strict=True))
    return Histogram(one.bounds, counts, one.total + other.total)


def _sample(line: str, name_end: int) -> tuple[str, Sample] | None:
    """The sample and its identity: name and labels as they are written."""
    labels: dict[str, str] | None = {}
    end = name_end
    while end < len(line) and line[end] in " \t":
        end += 1
    if line[end : end + 1] == "{":
        end = line.rfind("}") + 1
        labels = _labels(line[line.index("{") + 1 : end - 1]) if end else None
    elif end == name_end:
        return None
    rest = line[end:].split()
    if labels is None or len(rest) not in (1, 2):
        return None
    if not all(_NUMBER.fullmatch(each) for each in rest):
        return None
    return line[:end].rstrip(), Sample(labels, float(rest[0]))


def _labels(text: str) -> dict[str, str] | None:
    labels: dict[str, str] = {}
    place = 0
    while place < len(text):
        match = _LABEL.match(text, place)
        if match is None:
            # A comma may end the list.
            return labels if labels and not text[place:].strip(" \t") else None
        name, value, _ = match.groups()
        if name in labels:
            return None
        labels[name] = _ESCAPE.sub(_unescaped, value) if "\\" in value else value
        place = match.end()
    return labels


def _unescaped(match: re.Match[str]) -> str:
    return _ESCAPED.get(match.group(1), match.group())


def _matches(labels: Mapping[str, str], where: Where) -> bool:
    for name, wanted in where.items():
        found = labels.get(name)
        if found != wanted and (
            found is None
            or name not in ("model", "model_name")
            or found.casefold() != wanted.casefold()
        ):
            return False
    return True


def _bound(labels: Mapping[str, str]) -> float | None:
    text = labels.get("le", "")
    if not _NUMBER.fullmatch(text) or isnan(float(text)):
        return None
    return float(text)


def _key(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(item for item in labels.items() if item[0] != "le"))


def _one_histogram(buckets: Mapping[float, float], count: float) -> Histogram | None:
    """None unless the counts rise with the bounds to the count of all."""
    bounds = tuple(sorted(buckets))
    counts = tuple(buckets[bound] for bound in bounds)
    if bounds[-1] != inf or counts[-1] != count:
        return None
    if not all(isfinite(each) and each >= 0.0 for each in counts):
        return None
    if any(low > high for low, high in pairwise(counts)):
        return None
    return Histogram(bounds, counts, 0.0)


def _named(names: Sequence[str], where: Where | None) -> str:
    text = " or ".join(names)
    if where:
        text += " with " + ", ".join(f"{name}={value!r}" for name, value in where.items())
    return _shown(text, 300)


def _broken(source: str, number: int, line: str) -> PageError:
    return PageError(f"{source}, line {number}: {_shown(line)}: not a line of a metrics page")


def _shown(text: str, most: int = _MOST_SHOWN) -> str:
    cut = text if len(text) <= most else text[: most - 3] + "..."
    return cut.encode("unicode_escape").decode("ascii")
