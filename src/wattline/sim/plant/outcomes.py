"""What became of every request, in columns: 51 bytes a request, so that a million fit anywhere."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

WAITING, COMPLETED, REJECTED = 0, 1, 2
"""Values of `Outcomes.status`; a request that has not ended is `WAITING`, served or not."""


class Sequence:
    """A live request. `left` counts output tokens to come, `total_tokens` all that it will hold.

    `prompt` is what has to be in the cache before the next token: the request's prompt, and after a
    preemption or the loss of a node also the tokens made so far. `prefill_left` of it is still to
    be computed.
    """

    __slots__ = ("deployment", "hashes", "index", "left", "prefill_left", "prompt", "total_tokens")

    def __init__(
        self, index: int, deployment: int, prompt: int, output: int, hashes: tuple[int, ...]
    ) -> None:
        self.index = index
        self.deployment = deployment
        self.prompt = prompt
        self.prefill_left = prompt
        self.left = output
        self.total_tokens = prompt + output
        self.hashes = hashes

    def restart(self, left: int) -> None:
        """Forget the cache: everything held so far must be computed again."""
        self.left = left
        self.prompt = self.total_tokens - left
        self.prefill_left = self.prompt


class Window:
    """Counters of one deployment since they were last read."""

    __slots__ = ("arrivals", "cached", "completions", "input", "itl", "output", "rejected", "ttft")

    def __init__(self) -> None:
        self.arrivals = 0
        self.input = 0
        self.cached = 0
        self.completions = 0
        self.output = 0
        self.rejected = 0
        self.ttft: list[float] = []
        self.itl: list[float] = []


class Outcomes:
    """Columns over requests, and the open window of every deployment."""

    def __init__(self, deployments: int) -> None:
        self.arrival_s = array("d")
        self.ttft_s = array("d")
        self.itl_s = array("d")
        self.finished_s = array("d")
        self.output_tokens = array("q")
        self.deployment = array("h")
        self.status = array("b")
        self.completed = 0
        self.rejected = 0
        self.tokens_done = 0
        self.windows = [Window() for _ in range(deployments)]

    def arrive(self, now: float, deployment: int, input_tokens: int, output_tokens: int) -> int:
        """Note an offered request; returns its row."""
        index = len(self.arrival_s)
        self.arrival_s.append(now)
        self.ttft_s.append(nan)
        self.itl_s.append(nan)
        self.finished_s.append(nan)
        self.output_tokens.append(output_tokens)
        self.deployment.append(deployment)
        self.status.append(WAITING)
        window = self.windows[deployment]
        window.arrivals += 1
        window.input += input_tokens
        return index

    def reject(self, index: int, deployment: int) -> None:
        """Note that the request was refused on arrival."""
        self.status[index] = REJECTED
        self.rejected += 1
        self.windows[deployment].rejected += 1

    def first_token(self, index: int, now: float) -> None:
        """Note the first token; a later one after a preemption changes nothing."""
        if self.ttft_s[index] != self.ttft_s[index]:
            self.ttft_s[index] = now - self.arrival_s[index]

    def finish(self, sequence: Sequence, now: float) -> None:
        """Note the last token."""
        index = sequence.index
        output = self.output_tokens[index]
        window = self.windows[sequence.deployment]
        ttft = self.ttft_s[index]
        window.ttft.append(ttft)
        if output > 1:
            itl = (now - self.arrival_s[index] - ttft) / (output - 1)
            self.itl_s[index] = itl
            window.itl.append(itl)
        self.finished_s[index] = now
        self.status[index] = COMPLETED
        self.completed += 1
        window.completions += 1
        window.output += output


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandCounters:
    """What one deployment's frontends counted since the last reading; None: no request ended."""

    window_s: float
    arrivals: int
    input_tokens_sum: int
    cached_tokens_sum: int
    completions: int
    output_tokens_sum: int
    rejected: int
    ttft_s: tuple[float, ...]
    itl_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """A run so far. Columns hold one entry per offered request, in order of arrival.

    ttft_s, itl_s and finished_s are NaN where the event has not happened (itl_s also for requests
    of one token). status: 0 unfinished, 1 completed, 2 rejected. energy_j is the integral of the
    draw of all GPUs, idle, parked and loading ones included. generated_tokens counts every output
    token made until now, also those of unfinished requests; output_tokens those asked for.
    """

    offered: int
    completed: int
    rejected: int
    unfinished: int
    energy_j: float
    generated_tokens: int
    preemptions: int
    retried: int
    arrival_s: NDArray[np.float64]
    ttft_s: NDArray[np.float64]
    itl_s: NDArray[np.float64]
    finished_s: NDArray[np.float64]
    output_tokens: NDArray[np.int64]
    deployment: NDArray[np.int16]
    status: NDArray[np.int8]
