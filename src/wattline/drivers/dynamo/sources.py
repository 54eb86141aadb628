"""What a controller asks once a tick: a deployment's demand and a pool's load.

Each source makes its calls at once, ends within its time limit, and may be called from a thread of
its own, by one caller at a time.

A frontend or a worker whose address refuses connections is dead and serves nothing: the others
stand for the whole, and `missing` names it. One that is silent, slow or unreadable may be serving:
then nothing is said of the whole, and the next reading that is complete covers the time since the
last one that was, so that no count is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattline.core.snapshot import DemandView
from wattline.drivers.dynamo.demand import (
    MOST_TOKENS,
    FrontendDelta,
    Quantile,
    frontend_delta,
)
from wattline.drivers.dynamo.frontend import (
    PREFIX,
    FrontendScrape,
    frontend_families,
    read_frontend,
)
from wattline.drivers.dynamo.pages import MAX_PAGE_BYTES, Missing, Page, PageError, parse_page
from wattline.drivers.dynamo.workers import (
    WORKER_FAMILIES,
    FrontendWorkers,
    WorkerScrape,
    read_frontend_workers,
    read_worker,
)
from wattline.drivers.http_batch import Call, HttpBatch, Unanswered

_LONGEST_S = 1e6
"""A latency above it is a page that is wrong."""
_GAUGES_STALE_S = 5.0
"""Frontends' gauges that are older do not stand in for what workers do not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandReading:
    """One deployment's demand since the reading before. missing: what is not known, and why."""

    view: DemandView
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLoad:
    """Sums over the workers of one pool, as in `PoolView`; None where one of them does not say."""

    queued_prefill_tokens: float | None
    active_kv_tokens: float | None
    running: float | None
    missing: tuple[str, ...] = ()


class FrontendDemand:
    """One deployment's demand, from the pages of all its frontends.

    urls: of the frontends, without a path. model: its name there, in any case of letters. limit_s:
    of one reading. newest: the last complete difference, with means, bounds and notes. gauges: what
    the frontends last told of their workers.
    """

    def __init__(
        self, urls: Sequence[str], model: str, *, limit_s: float, prefix: str = PREFIX
    ) -> None:
        self.newest: FrontendDelta | None = None
        self.gauges: tuple[FrontendWorkers, ...] = ()
        self._urls = tuple(dict.fromkeys(urls))
        self._model = model
        self._prefix = prefix
        self._pages = _Pages(frontend_families(prefix), limit_s)
        self._before: dict[str, FrontendScrape] = {}
        self._complete_s: float | None = None

    def read(self, now_s: float) -> DemandReading:
        """Look at all frontends now; `now_s` may be of any clock that goes on steadily."""
        read = self._pages.read(self._urls, now_s)
        scrapes = [
            read_frontend(page, self._model, at_s, self._prefix) for page, at_s in read.pages
        ]
        if read.pages:
            self.gauges = tuple(
                read_frontend_workers(page, self._model, at_s, self._prefix)
                for page, at_s in read.pages
            )
        for source in read.gone:
            # When it listens again, it counts from its first page on.
            self._before.pop(source, None)
        if read.unknown or not scrapes:
            age_s = 0.0 if self._complete_s is None else now_s - self._complete_s
            return DemandReading(view=_no_view(age_s), missing=(*read.unknown, *read.gone.values()))
        delta = frontend_delta(list(self._before.values()), scrapes, now_s)
        self._before = {scrape.source: scrape for scrape in scrapes}
        self._complete_s = now_s
        self.newest = delta
        view, why = demand_view(delta)
        return DemandReading(view=view, missing=(*read.gone.values(), *why))

    def close(self) -> None:
        """Close all connections."""
        self._pages.close()


class WorkerLoads:
    """One pool's load, from its workers' pages.

    gauges: what the frontends tell of workers, for workers that do not tell their prompt tokens or
    the size of their cache; as a rule `lambda: demand.gauges`.
    """

    def __init__(
        self,
        *,
        limit_s: float,
        gauges: Callable[[], Sequence[FrontendWorkers]] = tuple,
    ) -> None:
        self._gauges = gauges
        self._pages = _Pages(WORKER_FAMILIES, limit_s)

    def read(self, now_s: float, urls: Sequence[str]) -> PoolLoad:
        """Look at the workers at `urls` now; the path `/metrics` is added where none is given."""
        read = self._pages.read(tuple(dict.fromkeys(urls)), now_s)
        workers = [read_worker(page, at_s) for page, at_s in read.pages]
        routed = _RoutedLoad(self._gauges(), now_s)
        missing = [*read.unknown, *read.gone.values()]
        sums: list[float | None] = []
        for value in (routed.prefill_tokens, routed.kv_tokens, _running):
            each = [_possible(value(worker), worker.source) for worker in workers]
            missing.extend(one.reason for one in each if isinstance(one, Missing))
            numbers = [one for one in each if not isinstance(one, Missing)]
            whole = len(numbers) == len(each) and not read.unknown
            sums.append(sum(numbers) if whole else None)
        return PoolLoad(
            queued_prefill_tokens=sums[0],
            active_kv_tokens=sums[1],
            running=sums[2],
            missing=tuple(dict.fromkeys(missing)),
        )

    def close(self) -> None:
        """Close all connections."""
        self._pages.close()


def demand_view(delta: FrontendDelta) -> tuple[DemandView, tuple[str, ...]]:
    """The delta as a decision wants it, and what is missing or was taken for something else.

    Cached tokens that no engine reports are taken as none, which overstates the work to do: a
    fleet whose engines do not report them would be blind otherwise.
    """
    missing = [*delta.missing]
    cached = delta.cached_tokens_sum
    if cached is None and delta.input_tokens_sum is not None:
        cached = 0
        missing.append("cached tokens are not reported: taken as none")
    view = DemandView(
        window_s=delta.window_s,
        arrivals=delta.arrivals,
        input_tokens_sum=delta.input_tokens_sum,
        cached_tokens_sum=cached,
        completions=delta.completions,
        output_tokens_sum=delta.output_tokens_sum,
        rejected=delta.rejected,
        ttft_p50_s=_seconds(delta.ttft_p50),
        ttft_p99_s=_seconds(delta.ttft_p99),
        itl_p50_s=_seconds(delta.itl_p50),
        itl_p99_s=_seconds(delta.itl_p99),
        age_s=max(0.0, delta.age_s),
        ttft_mean_s=delta.ttft_mean_s,
        itl_mean_s=delta.itl_mean_s,
    )
    missing.extend(f"{url}: started anew; its last counts are lost" for url in delta.restarted)
    return view, tuple(missing)


@dataclass(frozen=True, slots=True)
class _Read:
    """Pages and when they came; why others did not: `gone` by address, for those that refuse."""

    pages: tuple[tuple[Page, float], ...]
    gone: dict[str, str]
    unknown: tuple[str, ...]


class _Pages:
    """Fetches and parses several pages at once."""

    def __init__(self, families: Sequence[str], limit_s: float) -> None:
        self._families = families
        self._http = HttpBatch(limit_s=limit_s, most_bytes=MAX_PAGE_BYTES)

    def read(self, urls: Sequence[str], now_s: float) -> _Read:
        began_s = time.monotonic()
        answers = self._http.run([Call(_page_of(url)) for url in urls])
        pages: list[tuple[Page, float]] = []
        gone: dict[str, str] = {}
        unknown: list[str] = []
        for url, answer in zip(urls, answers, strict=True):
            if isinstance(answer, Unanswered):
                if answer.refused:
                    gone[url] = f"{url}: refuses connections: left out"
                else:
                    unknown.append(answer.reason)
                continue
            if answer.status != 200:
                unknown.append(f"{url}: answers {answer.status}")
                continue
            try:
                page = parse_page(answer.body, url, self._families)
            except PageError as error:
                unknown.append(str(error))
                continue
            pages.append((page, now_s + (answer.at_s - began_s)))
        return _Read(tuple(pages), gone, tuple(unknown))

    def close(self) -> None:
        self._http.close()


class _RoutedLoad:
    """What workers tell, and where they do not, what all frontends together routed to them."""

    def __init__(self, gauges: Sequence[FrontendWorkers], now_s: float) -> None:
        self._gauges = gauges
        self._fresh = bool(gauges) and all(
            now_s - each.at_s <= _GAUGES_STALE_S and not isinstance(each.routed, Missing)
            for each in gauges
        )
        blocks = [each.block_tokens for each in gauges]
        self._block_tokens = next((b for b in blocks if not isinstance(b, Missing)), None)
        sizes = [each.kv_blocks for each in gauges]
        self._kv_blocks = next((b for b in sizes if not isinstance(b, Missing)), None)

    def prefill_tokens(self, worker: WorkerScrape) -> float | Missing:
        own = worker.queued_prefill_tokens
        if not isinstance(own, Missing):
            return own
        routed = self._routed(worker)
        return own if routed is None else routed[1]

    def kv_tokens(self, worker: WorkerScrape) -> float | Missing:
        own = worker.active_kv_tokens
        if not isinstance(own, Missing) or self._block_tokens is None:
            return own
        if not isinstance(worker.kv_share, Missing) and self._kv_blocks is not None:
            return worker.kv_share * self._kv_blocks * self._block_tokens
        routed = self._routed(worker)
        return own if routed is None else routed[0] * self._block_tokens

    def _routed(self, worker: WorkerScrape) -> tuple[float, float] | None:
        """Blocks and prompt tokens; None where they are not known to be all."""
        if not self._fresh or not worker.ids:
            return None
        blocks = tokens = 0.0
        for each in self._gauges:
            if isinstance(each.routed, Missing):
                return None
            for entry in each.routed:
                if entry.worker_id in worker.ids:
                    blocks += entry.decode_blocks
                    tokens += entry.prefill_tokens
        return blocks, tokens


def _running(worker: WorkerScrape) -> float | Missing:
    """Requests that run; of a worker that does not tell them from those that wait, all it has."""
    return worker.in_flight if isinstance(worker.running, Missing) else worker.running


def _possible(value: float | Missing, source: str) -> float | Missing:
    """`value`, unless no worker can hold so much: one such value would make the sum useless."""
    if isinstance(value, Missing) or 0.0 <= value <= MOST_TOKENS:
        return value
    return Missing(f"{source}: a load of {value:.3g} cannot be")


def _seconds(value: Quantile | None) -> float | None:
    if value is None or not 0.0 <= value.value_s <= _LONGEST_S:
        return None
    return round(value.value_s, 9)


def _page_of(url: str) -> str:
    """`url` with `/metrics`, unless it names a path."""
    bare = url.rstrip("/")
    return bare if "/" in bare.partition("://")[2] else f"{bare}/metrics"


def _no_view(age_s: float) -> DemandView:
    return DemandView(
        window_s=0.0,
        arrivals=None,
        input_tokens_sum=None,
        cached_tokens_sum=None,
        completions=None,
        output_tokens_sum=None,
        rejected=None,
        ttft_p50_s=None,
        ttft_p99_s=None,
        itl_p50_s=None,
        itl_p99_s=None,
        age_s=age_s,
    )
