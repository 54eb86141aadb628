"""Real HTTP load on frontends: `python -m wattline.live.load SPEC`, a process of its own.

An open loop: every request is sent at its own time, whatever became of those before it. Chat
completions are streamed, and the client's clock says when the first and the last token came. The
process exists so that nobody else's work delays these times; its own lateness is in every row.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from wattline.live.model_dir import words as made_up_words

log = logging.getLogger(__name__)

OK, OVERLOADED = 200, (529, 503)
UNFINISHED = 0
"""Status of a request that had not ended when the load was over."""
BROKEN = -1
"""Status of a request whose connection could not be made, or broke."""

_TEMPLATE_TOKENS = 2
_MOST_LINE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """What to send. `requests`: (seconds from the start, prompt tokens, output tokens).

    start_s: of the monotonic clock, which all processes of a machine share. end_s: seconds from the
    start after which what has not ended is `UNFINISHED`. Frontends take turns. out: a line of JSON
    for each request that ended.
    """

    frontends: list[str]
    model: str
    model_dir: str
    out: str
    start_s: float
    end_s: float
    requests: list[tuple[float, int, int]]
    seed: int = 1


@dataclass(slots=True, kw_only=True)
class Row:
    """One request as its client saw it; times are seconds from the start of the load.

    late_s: how much later than planned it was sent. first_s, last_s: when its first and last tokens
    came; None: none came. input_tokens: as the frontend counted them, else as planned.
    """

    index: int
    planned_s: float
    late_s: float = 0.0
    status: int = UNFINISHED
    first_s: float | None = None
    last_s: float | None = None
    input_tokens: int
    output_tokens: int
    frontend: int
    why: str | None = None

    @property
    def sent_s(self) -> float:
        """When it was sent."""
        return self.planned_s + self.late_s

    @property
    def ttft_s(self) -> float | None:
        """From sending it to its first token."""
        return None if self.first_s is None else self.first_s - self.sent_s

    @property
    def itl_s(self) -> float | None:
        """(Last - first token) / (tokens - 1); None below two tokens, and for what did not end."""
        if self.status != OK or self.first_s is None or self.last_s is None:
            return None
        if self.output_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.output_tokens - 1)


class Prompts:
    """Made-up prompts of an exact number of tokens; no two begin alike."""

    def __init__(self, model_dir: Path, seed: int) -> None:
        """Reads which words are one token from `tokenizer.json`."""
        tokenizer = json.loads((model_dir / "tokenizer.json").read_bytes())
        vocabulary = tokenizer["model"]["vocab"]
        self._words = [word for word in made_up_words() if f"\u0120{word}" in vocabulary]
        self._random = random.Random(seed)

    def of(self, tokens: int) -> str:
        """A prompt; the chat template's tokens are counted in."""
        count = max(1, tokens - _TEMPLATE_TOKENS)
        return "".join(f" {word}" for word in self._random.choices(self._words, k=count))


class Load:
    """Sends the requests of a specification, and writes a row for each that ended."""

    def __init__(self, spec: LoadSpec, out: IO[str]) -> None:
        self._spec = spec
        self._out = out
        self._prompts = Prompts(Path(spec.model_dir), spec.seed)
        self._addresses = [urlsplit(url) for url in spec.frontends]

    def now(self) -> float:
        """Seconds from the start."""
        return time.monotonic() - self._spec.start_s

    async def run(self) -> None:
        """All of it. What has not ended at `end_s` gets its row then."""
        open_tasks: dict[asyncio.Task[None], Row] = {}
        for index, (at_s, prompt, output) in enumerate(self._spec.requests):
            frontend = index % len(self._addresses)
            row = Row(
                index=index,
                planned_s=at_s,
                input_tokens=prompt,
                output_tokens=output,
                frontend=frontend,
            )
            body = self._body(prompt, output)  # before its time: it takes a millisecond
            await asyncio.sleep(max(0.0, at_s - self.now()))
            task = asyncio.create_task(self._one(row, body))
            open_tasks[task] = row
            task.add_done_callback(lambda done: open_tasks.pop(done, None))
        if open_tasks:
            await asyncio.wait(open_tasks, timeout=max(0.0, self._spec.end_s - self.now()))
        # One that has just ended has its row, though nobody has taken it off the list yet.
        late = [(task, row) for task, row in open_tasks.items() if not task.done()]
        for task, row in late:
            task.cancel()
            row.status = UNFINISHED
            self._write(row)
        await asyncio.gather(*(task for task, _ in late), return_exceptions=True)

    def _body(self, prompt: int, output: int) -> bytes:
        document = {
            "model": self._spec.model,
            "messages": [{"role": "user", "content": self._prompts.of(prompt)}],
            "max_tokens": output,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps(document).encode()

    async def _one(self, row: Row, body: bytes) -> None:
        row.late_s = self.now() - row.planned_s
        try:
            await self._ask(row, body)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            row.status = BROKEN
            row.why = f"{type(error).__name__}: {error}"
        self._write(row)

    def _write(self, row: Row) -> None:
        self._out.write(json.dumps(asdict(row)) + "\n")
        self._out.flush()

    async def _ask(self, row: Row, body: bytes) -> None:
        address = self._addresses[row.frontend]
        reader, writer = await asyncio.open_connection(
            address.hostname, address.port, limit=_MOST_LINE
        )
        try:
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await writer.drain()
            row.status, chunked = await _head(reader)
            if row.status != OK:
                row.why = (await reader.read(500)).decode(errors="replace")
                return
            await self._stream(row, reader, chunked)
        finally:
            writer.close()

    async def _stream(self, row: Row, reader: asyncio.StreamReader, chunked: bool) -> None:
        """Note when tokens come; ValueError for a stream that ends early or tells of an error."""
        done = False
        async for line in _lines(reader, chunked):
            if line.startswith(b"event: error"):
                raise ValueError("the stream tells of an error")
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                done = True
            elif b'"choices":[{' in data:
                # A token each, also where no text comes with it: the first one of these answers is
                # a special token, whose text is left out.
                now_s = self.now()
                row.first_s = now_s if row.first_s is None else row.first_s
                row.last_s = now_s
            elif b'"usage":{' in data:
                usage = json.loads(data)["usage"]
                row.input_tokens = int(usage["prompt_tokens"])
                row.output_tokens = int(usage["completion_tokens"])
        if not done or row.first_s is None:
            raise ValueError("the stream ended early")


async def _head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Status, and whether the body comes in chunks."""
    words = (await reader.readline()).split()
    if len(words) < 2 or not words[1].isdigit():
        raise ValueError("no HTTP answer")
    chunked = False
    while (line := (await reader.readline()).strip().lower()) != b"":
        chunked = chunked or (line.startswith(b"transfer-encoding:") and b"chunked" in line)
    return int(words[1]), chunked


async def _lines(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    """Lines of the body; chunks may end anywhere."""
    rest = b""
    async for part in _parts(reader, chunked):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest


async def _parts(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    while not chunked:
        part = await reader.read(1 << 16)
        if not part:
            return
        yield part
    while True:
        size = int((await reader.readline()).split(b";")[0], 16)  # "" here: cut short: ValueError
        if size == 0:
            return
        yield (await reader.readexactly(size + 2))[:-2]


def read_rows(path: Path) -> list[Row]:
    """Rows of a load that has ended or still runs, in the order of the requests."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(Row(**json.loads(line)))
        except ValueError:
            break  # the last one is being written
    return sorted(rows, key=lambda row: row.index)


def command(spec: LoadSpec, path: Path) -> list[str]:
    """Argv of a process that sends it; the specification is written to `path`."""
    path.write_text(json.dumps(asdict(spec)))
    return [sys.executable, "-m", "wattline.live.load", str(path)]


def main(arguments: Sequence[str]) -> int:
    """Send the load of a specification's file."""
    raw: dict[str, Any] = json.loads(Path(arguments[0]).read_bytes())
    raw["requests"] = [(float(at), int(p), int(o)) for at, p, o in raw["requests"]]
    spec = LoadSpec(**raw)
    with Path(spec.out).open("w") as out:
        asyncio.run(Load(spec, out).run())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
