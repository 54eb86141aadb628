"""Traffic as compact columns: cut, scaled, measured and read lazily as requests.

A million requests take about 16 MB here, so a trace can be walked once per policy, handed to worker
processes, and still fit beside the plant.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wattline.core.errors import InputError
from wattline.sim.request import Request

FORMAT = "wattline.trace/1"
HASH_BLOCK_TOKENS = 512
"""Prompt tokens that one prefix hash stands for (Mooncake FAST25 traces)."""

_CHUNK = 4096

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficMix:
    """What the requests of one deployment are like, on average.

    `*_cv2` are squared coefficients of variation (variance / mean squared). `cached_share` is the
    share of prompt tokens that a prefix cache which never forgets would find, None for a trace
    without prefix hashes.
    """

    rate_rps: float
    mean_input_tokens: float
    mean_output_tokens: float
    input_cv2: float
    output_cv2: float
    cached_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceInfo:
    """What a report says about its traffic. `notes` are whole sentences."""

    source: str
    format: str
    requests: int
    duration_s: float
    quantum_s: float | None
    dropped: int
    mix: TrafficMix
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Requests in order of arrival, as columns of equal length.

    time_s: seconds from the start, to the microsecond. deployment: index into the scenario's
    deployments. Request i's prefix hashes are `hashes[hash_start[i]:hash_start[i + 1]]`.
    `duration_s` is the time the trace covers, which may be longer than to its last request.
    `quantum_s` is the time step of the file when it was coarse, `dropped` the rows left out because
    they hold no tokens. Iterating yields `Request`s, as often as asked.
    """

    time_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    deployment: Ints
    hash_start: Ints
    hashes: Ints
    duration_s: float
    source: str
    format: str
    quantum_s: float | None = None
    dropped: int = 0
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.time_s)

    def __iter__(self) -> Iterator[Request]:
        for first in range(0, len(self), _CHUNK):
            yield from self._requests(slice(first, first + _CHUNK))

    def _requests(self, rows: slice) -> Iterator[Request]:
        columns = zip(
            self.time_s[rows].tolist(),
            self.input_tokens[rows].tolist(),
            self.output_tokens[rows].tolist(),
            self.deployment[rows].tolist(),
            strict=True,
        )
        if len(self.hashes) == 0:
            for time_s, input_tokens, output_tokens, deployment in columns:
                yield Request(time_s, input_tokens, output_tokens, deployment)
            return
        starts = self.hash_start[rows.start : rows.stop + 1].tolist()
        base = starts[0]
        hashes = self.hashes[base : starts[-1]].tolist()
        for row, (time_s, input_tokens, output_tokens, deployment) in enumerate(columns):
            prefix = tuple(hashes[starts[row] - base : starts[row + 1] - base])
            yield Request(time_s, input_tokens, output_tokens, deployment, prefix)

    def cut(self, from_s: float = 0.0, until_s: float | None = None) -> Trace:
        """Keep requests with from_s <= time < until_s, times counted from `from_s`.

        InputError when nothing is left.
        """
        end_s = self.duration_s if until_s is None else min(until_s, self.duration_s)
        if not 0.0 <= from_s < end_s:
            raise InputError(
                f"{self.source}: cut",
                f"{from_s:g} s to {end_s:g} s",
                f"give a start before the end; the trace covers 0 to {self.duration_s:g} s",
            )
        if from_s == 0.0 and end_s == self.duration_s:
            return self
        first, last = (int(i) for i in np.searchsorted(self.time_s, [from_s, end_s]))
        if first == last:
            raise InputError(
                f"{self.source}: cut", f"{from_s:g} s to {end_s:g} s", "no request in that time"
            )
        starts = self.hash_start[first : last + 1]
        return replace(
            self,
            time_s=np.round(self.time_s[first:last] - from_s, 6),
            input_tokens=self.input_tokens[first:last],
            output_tokens=self.output_tokens[first:last],
            deployment=self.deployment[first:last],
            hash_start=starts - starts[0],
            hashes=self.hashes[starts[0] : starts[-1]],
            duration_s=round(end_s - from_s, 6),
            notes=(*self.notes, f"Cut to {from_s:g} s to {end_s:g} s."),
        )

    def scaled(self, factor: float) -> Trace:
        """Replay the requests `factor` times as fast: load x factor, duration / factor."""
        if not (math.isfinite(factor) and 1e-6 <= factor <= 1e6):
            raise InputError("load scale", factor, "must be between 1e-6 and 1e6")
        if factor == 1.0:
            return self
        return replace(
            self,
            time_s=np.round(self.time_s / factor, 6),
            duration_s=round(self.duration_s / factor, 6),
            notes=(*self.notes, f"Time compressed by {factor:.4g} to scale the load."),
        )

    def mix(self, deployment: int | None = None) -> TrafficMix:
        """Means of the requests of `deployment` (index; None: of all)."""
        rows = (
            np.ones(len(self), dtype=np.bool_)
            if deployment is None
            else self.deployment == deployment
        )
        count = int(rows.sum())
        if count == 0:
            raise InputError(
                f"{self.source}: deployment", deployment, "the trace has no request for it"
            )
        mean_in, input_cv2 = _mean_and_cv2(self.input_tokens[rows])
        mean_out, output_cv2 = _mean_and_cv2(self.output_tokens[rows])
        return TrafficMix(
            rate_rps=round(count / self.duration_s, 9),
            mean_input_tokens=mean_in,
            mean_output_tokens=mean_out,
            input_cv2=input_cv2,
            output_cv2=output_cv2,
            cached_share=self._cached_share(rows),
        )

    def cached_share(self, deployment: int, capacity_tokens: float) -> float:
        """Share of a deployment's prompt tokens that a prefix cache of `capacity_tokens` finds.

        One cache, least recently used out first, that sees every request: what replicas behind a
        router that knows their caches come near to. 0 for a trace without prefix hashes.
        """
        room = int(capacity_tokens / HASH_BLOCK_TOKENS)
        held: OrderedDict[int, None] = OrderedDict()  # in order of use
        cached = total = 0
        for request in self:
            if request.deployment != deployment:
                continue
            total += request.input_tokens
            hits = 0
            for block in request.prefix_hashes:
                if block not in held:
                    break
                hits += 1
            cached += min(hits * HASH_BLOCK_TOKENS, request.input_tokens)
            for block in reversed(request.prefix_hashes):
                held[block] = None
                held.move_to_end(block)
            while len(held) > room:
                held.popitem(last=False)
        return round(cached / total, 6) if total else 0.0

    def _cached_share(self, rows: npt.NDArray[np.bool_]) -> float | None:
        if len(self.hashes) == 0:
            return None
        seen: set[tuple[int, int]] = set()
        cached = 0
        for request, taken in zip(self, rows.tolist(), strict=True):
            if not taken:
                continue
            # Deployments serve different models: they do not share a cache.
            blocks = [(request.deployment, block) for block in request.prefix_hashes]
            hits = 0
            while hits < len(blocks) and blocks[hits] in seen:
                hits += 1
            cached += min(hits * HASH_BLOCK_TOKENS, request.input_tokens)
            seen.update(blocks[hits:])
        return round(cached / int(self.input_tokens[rows].sum()), 9)

    def info(self) -> TraceInfo:
        """Describe this trace for a report."""
        return TraceInfo(
            source=self.source,
            format=self.format,
            requests=len(self),
            duration_s=self.duration_s,
            quantum_s=self.quantum_s,
            dropped=self.dropped,
            mix=self.mix(),
            notes=self.notes,
        )


def _mean_and_cv2(tokens: Ints) -> tuple[float, float]:
    # fsum is exact, so the result does not depend on how numpy orders additions on this CPU.
    count = len(tokens)
    mean = int(tokens.sum()) / count
    variance = math.fsum(((tokens - mean) ** 2).tolist()) / count
    return round(mean, 9), round(variance / (mean * mean), 9)


def make_trace(
    time_s: Floats,
    input_tokens: Ints,
    output_tokens: Ints,
    *,
    duration_s: float,
    source: str,
    format: str = FORMAT,
    deployment: Ints | None = None,
    notes: tuple[str, ...] = (),
) -> Trace:
    """Make a trace without prefix hashes from columns in order of time."""
    count = len(time_s)
    return Trace(
        time_s=np.round(time_s, 6),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        deployment=np.zeros(count, dtype=np.int64) if deployment is None else deployment,
        hash_start=np.zeros(count + 1, dtype=np.int64),
        hashes=np.zeros(0, dtype=np.int64),
        duration_s=round(duration_s, 6),
        source=source,
        format=format,
        notes=notes,
    )


def for_deployment(trace: Trace, deployment: int) -> Trace:
    """Give all requests to the deployment of that index."""
    return replace(trace, deployment=np.full(len(trace), deployment, dtype=np.int64))


def merge(traces: Sequence[Trace]) -> Trace:
    """All requests of `traces` in order of time; it covers the longest of them.

    Prefix hashes of different parts are kept apart, as if their prompts had nothing in common.
    """
    if len(traces) == 1:
        return traces[0]
    time_s = np.concatenate([trace.time_s for trace in traces])
    order = np.argsort(time_s, kind="stable")
    hashes, offset = [], 0
    for trace in traces:
        distinct, dense = np.unique(trace.hashes, return_inverse=True)
        hashes.append(dense.astype(np.int64) + offset)
        offset += len(distinct)
    counts = np.concatenate([np.diff(trace.hash_start) for trace in traces])
    return Trace(
        time_s=time_s[order],
        input_tokens=np.concatenate([trace.input_tokens for trace in traces])[order],
        output_tokens=np.concatenate([trace.output_tokens for trace in traces])[order],
        deployment=np.concatenate([trace.deployment for trace in traces])[order],
        hash_start=np.concatenate([[0], np.cumsum(counts[order])]).astype(np.int64),
        hashes=_permuted(np.concatenate(hashes), counts, order),
        duration_s=max(trace.duration_s for trace in traces),
        source=" + ".join(trace.source for trace in traces),
        format=" + ".join(dict.fromkeys(trace.format for trace in traces)),
        quantum_s=max((t.quantum_s for t in traces if t.quantum_s is not None), default=None),
        dropped=sum(trace.dropped for trace in traces),
        notes=tuple(dict.fromkeys(note for trace in traces for note in trace.notes)),
    )


def _permuted(hashes: Ints, counts: Ints, order: Ints) -> Ints:
    """Put runs of `counts[i]` hashes in the order of rows `order`."""
    if len(hashes) == 0:
        return hashes
    starts = np.concatenate([[0], np.cumsum(counts)])
    runs = [hashes[starts[row] : starts[row + 1]] for row in order.tolist()]
    return np.concatenate(runs)


def write_trace(path: Path, trace: Trace) -> None:
    """Write `trace` in Wattline's own format (docs/reference/traces.md), gzipped if named `.gz`.

    The file appears whole or not at all; equal traces give equal bytes.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as raw:
            if path.suffix == ".gz":
                # A fixed name and time: the same trace gives the same bytes.
                with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
                    file.writelines(_lines(trace))
            else:
                raw.writelines(_lines(trace))
        partial.replace(path)
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "name a writable file") from error
    finally:
        partial.unlink(missing_ok=True)


def _lines(trace: Trace) -> Iterator[bytes]:
    header = {"format": FORMAT, "duration_s": trace.duration_s, "source": trace.source}
    yield json.dumps(header).encode() + b"\n"
    for request in trace:
        row: dict[str, object] = {
            "time_s": request.time_s,
            "input_tokens": request.input_tokens,
            "output_tokens": request.output_tokens,
        }
        if request.deployment:
            row["deployment"] = request.deployment
        if request.prefix_hashes:
            row["prefix_hashes"] = list(request.prefix_hashes)
        yield json.dumps(row).encode() + b"\n"
