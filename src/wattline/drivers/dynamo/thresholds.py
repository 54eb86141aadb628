"""Busy thresholds of Dynamo's frontends: `GET` and `POST /busy_threshold`, on all of them at once.

As NVIDIA Dynamo 1.6.1 has them: thresholds are kept in memory by each frontend process and are lost
when it restarts; a POST changes what it names and keeps the rest; the name of the model counts
letter by letter. **A threshold that was set cannot be cleared.** What can be sent instead: the two
for prefill can be set so high that no worker exceeds them. The share of decode blocks cannot: its
largest value, 1, still counts a worker as busy whose routed requests need more than its whole KV
cache (requests that wait for room count too), so that a frontend goes on rejecting under overload
until it is restarted. An admission that may have to end should leave that threshold alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from wattline.core.decision import Admission
from wattline.core.errors import InputError
from wattline.drivers.http_batch import Answer, Call, HttpBatch, Unanswered

LARGEST_TOKENS = 2**53
"""Stands for no limit in tokens: exact in JSON and in floats, and no worker holds as many."""
LARGEST_FRACTION = 1e9
"""Stands for no limit as a fraction of the tokens of one pass."""
_MOST_BYTES = 1024 * 1024
_MOST_SHOWN = 120

_BLOCKS = "active_decode_blocks_threshold"
_TOKENS = "active_prefill_tokens_threshold"
_FRACTION = "active_prefill_tokens_threshold_frac"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """One frontend's thresholds of one model; None is unset."""

    decode_blocks: float | None = None
    prefill_tokens: int | None = None
    prefill_fraction: float | None = None

    @property
    def unset(self) -> bool:
        """True when the frontend rejects nothing."""
        return self == Thresholds()


@dataclass(frozen=True, slots=True)
class FrontendResult:
    """One frontend, after it was read or written to.

    held: what it has now, None if it did not say. failure: why it is not as asked, in one line.
    sent: it was written to. restarted: it had nothing although it was given something before.
    not_cleared: names of thresholds that should be unset and could only be set to their largest
    value, which still rejects under overload.
    """

    url: str
    held: Thresholds | None
    failure: str | None = None
    sent: bool = False
    restarted: bool = False
    not_cleared: tuple[str, ...] = ()


class BusyThresholds:
    """Reads and sets the thresholds at every frontend of a deployment; for one thread at a time.

    limit_s: of one round of calls to all frontends at once; `send` takes up to two rounds.
    """

    def __init__(self, *, limit_s: float) -> None:
        self._http = HttpBatch(limit_s=limit_s, most_bytes=_MOST_BYTES)
        self._held: dict[tuple[str, str], Thresholds] = {}

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def read(self, frontend_urls: Sequence[str], model: str) -> list[FrontendResult]:
        """What each frontend has, in the order of the addresses."""
        return [self._result(found, model) for found in self._read(frontend_urls, model)]

    def send(
        self, frontend_urls: Sequence[str], model: str, wanted: Admission
    ) -> list[FrontendResult]:
        """Bring every frontend to `wanted`; only those that differ are written to.

        A frontend that fails does not keep the others from theirs: its result says so, and the next
        call tries again. InputError for thresholds that no frontend takes.
        """
        aim = _aim(wanted)
        found = self._read(frontend_urls, model)
        bodies = [_change(each, aim) for each in found]
        calls = [
            Call(_address(each.url), (), "POST", json.dumps(body).encode())
            for each, body in zip(found, bodies, strict=True)
            if body is not None
        ]
        answers = iter(self._http.run(calls) if calls else [])
        results = []
        for each, body in zip(found, bodies, strict=True):
            before = self._result(each, model)
            after = each if body is None else _echo(each, next(answers), aim)
            result = FrontendResult(
                url=each.url,
                held=after.held,
                failure=after.failure,
                sent=body is not None,
                restarted=before.restarted,
                not_cleared=_not_cleared(after.held, aim),
            )
            if after.held is not None:
                self._held[each.url, model] = after.held
            results.append(result)
        return results

    def _read(self, urls: Sequence[str], model: str) -> list[_Found]:
        answers = self._http.run([Call(_address(url)) for url in urls])
        return [_listed(url, answer, model) for url, answer in zip(urls, answers, strict=True)]

    def _result(self, found: _Found, model: str) -> FrontendResult:
        known = self._held.get((found.url, model))
        lost = found.held is not None and found.held.unset and known is not None
        restarted = lost and known != Thresholds()
        if found.held is not None:
            self._held[found.url, model] = found.held
        return FrontendResult(found.url, found.held, found.failure, restarted=restarted)


@dataclass(frozen=True, slots=True)
class _Found:
    """`name`: the model's, as this frontend writes it."""

    url: str
    name: str
    held: Thresholds | None
    failure: str | None = None


def _aim(wanted: Admission) -> Thresholds:
    """`wanted` as the frontends take it: a share of at most 1, whole tokens."""
    for name, value in (
        ("active_decode_blocks", wanted.active_decode_blocks),
        ("active_prefill_tokens", wanted.active_prefill_tokens),
        ("active_prefill_tokens_frac", wanted.active_prefill_tokens_frac),
    ):
        if value is not None and not (isfinite(value) and value >= 0.0):
            raise InputError(f"busy threshold {name}", value, "must be a number of at least 0")
    blocks, tokens = wanted.active_decode_blocks, wanted.active_prefill_tokens
    fraction = wanted.active_prefill_tokens_frac
    return Thresholds(
        None if blocks is None else min(1.0, float(blocks)),
        None if tokens is None else min(LARGEST_TOKENS, int(tokens)),
        None if fraction is None else min(LARGEST_FRACTION, float(fraction)),
    )


def _change(found: _Found, aim: Thresholds) -> dict[str, Any] | None:
    """The body to send; None where nothing can or need be changed."""
    held = found.held
    if held is None:
        return None
    body: dict[str, Any] = {}
    for name, has, wants, largest in (
        (_BLOCKS, held.decode_blocks, aim.decode_blocks, 1.0),
        (_TOKENS, held.prefill_tokens, aim.prefill_tokens, LARGEST_TOKENS),
        (_FRACTION, held.prefill_fraction, aim.prefill_fraction, LARGEST_FRACTION),
    ):
        if wants is not None and has != wants:
            body[name] = wants
        elif wants is None and has is not None and has < largest:
            body[name] = largest
    return {"model": found.name, **body} if body else None


def _not_cleared(held: Thresholds | None, aim: Thresholds) -> tuple[str, ...]:
    if held is None or aim.decode_blocks is not None or held.decode_blocks is None:
        return ()
    return (_BLOCKS,)


def _listed(url: str, answer: Answer | Unanswered, model: str) -> _Found:
    document = _document(url, answer)
    if isinstance(document, str):
        return _Found(url, model, None, document)
    entries = document.get("thresholds")
    if not isinstance(entries, list):
        return _Found(url, model, None, f"{url}: /busy_threshold lists no thresholds")
    for entry in entries:
        name = entry.get("model") if isinstance(entry, dict) else None
        if isinstance(name, str) and name.casefold() == model.casefold():
            return _read_entry(url, name, entry)
    return _Found(url, model, None, f"{url}: does not know the model {model!r} yet")


def _echo(found: _Found, answer: Answer | Unanswered, aim: Thresholds) -> _Found:
    """What the frontend says that it has after a change."""
    document = _document(found.url, answer)
    if isinstance(document, str):
        # What it holds is known again after the next read.
        return _Found(found.url, found.name, None, document)
    echoed = _read_entry(found.url, found.name, document)
    if echoed.held is not None and _change(echoed, aim) is not None:
        failure = f"{found.url}: was told {aim} and holds {echoed.held}"
        return _Found(found.url, found.name, echoed.held, failure)
    return echoed


def _document(url: str, answer: Answer | Unanswered) -> dict[str, Any] | str:
    """The answer's object, or why there is none."""
    if isinstance(answer, Unanswered):
        return answer.reason
    text = answer.body[:_MOST_SHOWN].decode(errors="replace").encode("unicode_escape").decode()
    if answer.status != 200:
        return f"{url}: /busy_threshold answers {answer.status}: {text}"
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return f"{url}: /busy_threshold answers with something else than an object: {text}"
    return document


def _read_entry(url: str, name: str, entry: Mapping[str, Any]) -> _Found:
    values: list[float | None] = []
    for key in (_BLOCKS, _TOKENS, _FRACTION):
        value = entry.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0.0 <= value < float("inf")):
            return _Found(url, name, None, f"{url}: /busy_threshold: {key} is no number")
        values.append(value)
    blocks, tokens, fraction = values
    whole = None if tokens is None else int(tokens)
    return _Found(url, name, Thresholds(blocks, whole, fraction))


def _address(url: str) -> str:
    return f"{url.rstrip('/')}/busy_threshold"
