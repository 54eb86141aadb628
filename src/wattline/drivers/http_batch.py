"""Several HTTP calls at once, with a limit on the time and the size of each.

One batch occupies the calling thread, which must not run an event loop of its own, and is over
after `limit_s` whatever the servers do: one that sends a byte now and then ends with its limit as
one that is silent. Proxies of the environment are not used and redirects are not followed: both
would send a token somewhere else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from wattline.core.errors import InputError

if TYPE_CHECKING:
    import ssl

_MOST_SHOWN = 160


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `content` is sent as JSON."""

    url: str
    params: tuple[tuple[str, str], ...] = ()
    method: str = "GET"
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, of any status. `at_s`: when it was complete, by the batch's clock."""

    status: int
    body: bytes
    at_s: float


@dataclass(frozen=True, slots=True)
class Unanswered:
    """No usable answer. `refused`: nothing listens there, so that nothing is served there either.

    `maybe_sent`: the server may have acted on the request.
    """

    reason: str
    refused: bool = False
    maybe_sent: bool = True


class HttpBatch:
    """Connections that are kept between batches; for one thread at a time.

    limit_s: from the start of a batch to its end. most_bytes: of one answer's body.
    verify: False: certificates are not checked; a path: certificates of the authorities to trust;
    True: those of the system. InputError for a path that cannot be read.
    """

    def __init__(
        self, *, limit_s: float, most_bytes: int, verify: bool | Path = True, most_open: int = 64
    ) -> None:
        import httpx2

        self._limit_s = limit_s
        self._most_bytes = most_bytes
        context = _context(verify)
        limits = httpx2.Limits(max_connections=most_open, max_keepalive_connections=most_open)
        self._client = httpx2.AsyncClient(
            verify=context, trust_env=False, timeout=limit_s, limits=limits
        )
        self._loop = asyncio.new_event_loop()

    def run(self, calls: Sequence[Call]) -> list[Answer | Unanswered]:
        """The answers, in the order of the calls; failures stand in their place."""
        answers = self._loop.run_until_complete(self._all(calls))
        # What one server wants remembered is nothing to tell another on the same host.
        self._client.cookies.clear()
        return answers

    def close(self) -> None:
        """Close all connections."""
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._client.aclose())
            self._loop.close()

    def __enter__(self) -> HttpBatch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def _all(self, calls: Sequence[Call]) -> list[Answer | Unanswered]:
        return list(await asyncio.gather(*(self._one(call) for call in calls)))

    async def _one(self, call: Call) -> Answer | Unanswered:
        import httpx2

        try:
            async with asyncio.timeout(self._limit_s):
                return await self._fetch(call)
        except (TimeoutError, httpx2.TimeoutException):
            return Unanswered(f"{call.url}: no whole answer within {self._limit_s:g} s")
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            unsent = isinstance(error, (httpx2.ConnectError, httpx2.UnsupportedProtocol))
            what = _shown(f"{type(error).__name__}: {error}".rstrip(": "))
            return Unanswered(f"{call.url}: {what}", _refused(error), not unsent)
        except (httpx2.InvalidURL, ValueError, OverflowError, ExceptionGroup) as error:
            # An address, a port or a header that cannot be one; the library wraps some in groups.
            what = f"{call.url}: cannot be asked: {_shown(str(error))}"
            return Unanswered(what, maybe_sent=False)

    async def _fetch(self, call: Call) -> Answer | Unanswered:
        headers = {**call.headers, "Accept-Encoding": "identity"}
        if call.content is not None:
            headers["Content-Type"] = "application/json"
        body = bytearray()
        async with self._client.stream(
            call.method, call.url, params=call.params or None, content=call.content, headers=headers
        ) as response:
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                # A few packed kilobytes may hold gigabytes.
                return Unanswered(f"{call.url}: a packed answer, which was not asked for: not read")
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > self._most_bytes:
                    return Unanswered(f"{call.url}: more than {self._most_bytes} bytes: not read")
        return Answer(response.status_code, bytes(body), time.monotonic())


def _context(verify: bool | Path) -> ssl.SSLContext | bool:
    if isinstance(verify, bool):
        return verify
    import ssl

    try:
        return ssl.create_default_context(cafile=str(verify))
    except (OSError, ValueError) as error:
        raise InputError("CA bundle", str(verify), f"give a readable PEM file: {error}") from None


def _refused(error: BaseException) -> bool:
    """True when the kernel of the other side said that nothing listens on any of its addresses."""
    causes: list[BaseException] = [error]
    refused = False
    while causes:
        cause = causes.pop()
        follow = cause.__cause__ or cause.__context__
        if isinstance(cause, BaseExceptionGroup):
            causes.extend(cause.exceptions)
        elif follow is not None:
            causes.append(follow)
        elif isinstance(cause, ConnectionRefusedError):
            refused = True
        else:
            return False
    return refused


def _shown(text: str) -> str:
    cut = text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
    return cut.encode("unicode_escape").decode("ascii")
