"""What a Dynamo frontend counts of one model's requests, from its own `/metrics`.

Names and behaviour as NVIDIA Dynamo 1.6.1 shows them:

- No series of a model's requests exists before the first request; that the frontend knows the model
  shows in `model_ready` and its like. Only then is an absent counter a zero.
- A request counts as started when it arrives, also one that is rejected afterwards. Its prompt
  tokens and its time to first token are observed at its first token, its output and cached tokens
  at its end, gaps between its tokens in batches of up to 64.
- `dynamo_component_uptime_seconds` is on the page, with an id that is new with each start.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattline.drivers.dynamo.pages import EMPTY, Histogram, Missing, Page

PREFIX = "dynamo_frontend"
"""As the frontend has it unless `--metrics-prefix` says otherwise."""
_UPTIME = "dynamo_component_uptime_seconds"


@dataclass(frozen=True, slots=True)
class FrontendScrape:
    """Cumulative counts of one model at one frontend; each is Missing with a reason if unusable.

    at_s: when the page was taken, by the caller's clock. identity: which start of the frontend this
    is, None if it does not say. uptime_s: since that start. prompts, answers, cached: tokens per
    request. ttft and itl: seconds. in_flight: requests now. started_name: the series behind
    `started`, because the older one counts requests when they end.
    """

    source: str
    at_s: float
    identity: str | None
    uptime_s: float | None
    started: float | Missing
    started_name: str
    completed: float | Missing
    rejected: float | Missing
    in_flight: float | Missing
    prompts: Histogram | Missing
    cached: Histogram | Missing
    answers: Histogram | Missing
    ttft: Histogram | Missing
    itl: Histogram | Missing


def frontend_families(prefix: str = PREFIX) -> tuple[str, ...]:
    """Prefixes of the series that `read_frontend` wants of a page."""
    wanted = (
        "requests_",
        "model_",
        "inflight_requests",
        "input_sequence_tokens",
        "output_sequence_tokens",
        "cached_tokens",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "worker_active_",
    )
    return (_UPTIME, *(f"{prefix}_{name}" for name in wanted))


def read_frontend(page: Page, model: str, at_s: float, prefix: str = PREFIX) -> FrontendScrape:
    """One model's counts, for `model` in any case of letters."""
    reader = _Reader(page, model, prefix)
    started_name, started = reader.started()
    uptime_s = page.gauge([_UPTIME])
    return FrontendScrape(
        source=page.source,
        at_s=at_s,
        identity=_identity(page),
        uptime_s=None if isinstance(uptime_s, Missing) else uptime_s,
        started=started,
        started_name=started_name,
        completed=reader.ended("success"),
        rejected=reader.rejected(),
        in_flight=reader.in_flight(),
        prompts=reader.histogram("input_sequence_tokens"),
        cached=reader.histogram("cached_tokens"),
        answers=reader.histogram("output_sequence_tokens"),
        ttft=reader.histogram("time_to_first_token_seconds"),
        itl=reader.histogram("inter_token_latency_seconds"),
    )


class _Reader:
    """One model's series on one page."""

    def __init__(self, page: Page, model: str, prefix: str) -> None:
        self._page = page
        self._prefix = prefix
        self._where = {"model": model}
        known = self._any("model_ready", "model_total_kv_blocks", "model_max_num_seqs")
        begun = self._any(
            "requests_started_total",
            "requests_total",
            "inflight_requests",
            "input_sequence_tokens_count",
            "time_to_first_token_seconds_count",
            "output_sequence_tokens_count",
        )
        self._untouched = known and not begun
        self._begun = begun

    def started(self) -> tuple[str, float | Missing]:
        """Requests that arrived; in releases without that series, those that ended."""
        names = [f"{self._prefix}_requests_started_total", f"{self._prefix}_requests_total"]
        if self._untouched:
            return names[0], 0.0
        for name in names:
            if self._page.select(name, self._where):
                return name, self._page.counter([name], self._where)
        return names[0], self._page.counter(names, self._where)

    def ended(self, status: str) -> float | Missing:
        """Requests that ended so; zero where others ended, or where none can have ended yet."""
        name = f"{self._prefix}_requests_total"
        if not self._page.select(name, self._where):
            # The series comes with the first request that ends.
            return 0.0 if self._untouched or self._none_ended() else self._absent(name)
        matching = {**self._where, "status": status}
        if not self._page.select(name, matching):
            return 0.0
        return self._page.counter([name], matching)

    def rejected(self) -> float | Missing:
        """Requests refused because all workers were busy."""
        found = self._page.counter([f"{self._prefix}_model_rejection_total"], self._where)
        if not isinstance(found, Missing):
            return found
        total = f"{self._prefix}_requests_total"
        overload = {**self._where, "status": "error", "error_type": "overload"}
        if self._page.select(total, overload):
            return self._page.counter([total], overload)
        # Both series come with the first rejection.
        return 0.0 if self._untouched or self._begun else found

    def in_flight(self) -> float | Missing:
        """Requests that arrived and did not end."""
        if self._untouched:
            return 0.0
        return self._page.gauge([f"{self._prefix}_inflight_requests"], self._where)

    def histogram(self, name: str) -> Histogram | Missing:
        """Empty where nothing can have been observed yet."""
        full = f"{self._prefix}_{name}"
        if self._untouched:
            return EMPTY
        found = self._page.histogram([full], self._where)
        if isinstance(found, Missing) and not self._page.select(f"{full}_count", self._where):
            # The series of a model come one by one, with the first observation of each.
            return EMPTY if self._none_ended() else found
        return found

    def _none_ended(self) -> bool:
        """Requests began and none ended with success, as far as the page tells."""
        started = f"{self._prefix}_requests_started_total"
        ended = {**self._where, "status": "success"}
        total = f"{self._prefix}_requests_total"
        return self._begun and self._any_of(started) and not self._page.select(total, ended)

    def _any(self, *names: str) -> bool:
        return any(self._any_of(f"{self._prefix}_{name}") for name in names)

    def _any_of(self, name: str) -> bool:
        return bool(self._page.select(name, self._where))

    def _absent(self, name: str) -> Missing:
        return Missing(f"{self._page.source}: no {name} of model {self._where['model']!r}")


def _identity(page: Page) -> str | None:
    ids = {sample.labels.get("worker_id", "") for sample in page.select(_UPTIME)}
    return ",".join(sorted(ids)) if any(ids) else None
