"""The HTTP client of the live demonstration, against a server that answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from wattline.live.load import BROKEN, OK, UNFINISHED, Load, LoadSpec, Prompts, Row, read_rows
from wattline.live.model_dir import words

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A tokenizer in which these words are one token each."""
    vocabulary = {f"\u0120{word}": number for number, word in enumerate(words()[:5])}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    return tmp_path


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(content: str) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % content.encode()


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":4}}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def served(
    answer: Answer, model_dir: Path, *, requests: int = 1, end_s: float = 5.0
) -> tuple[list[Row], list[bytes]]:
    """Rows of a load on a server with this answer, and the requests that it got."""
    bodies: list[bytes] = []
    handlers: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length is not None
        bodies.append(await reader.readexactly(int(length[1])))
        try:
            await answer(writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.ensure_future(handle(reader, writer)))

    async def run() -> str:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        out = io.StringIO()
        spec = LoadSpec(
            frontends=[f"http://127.0.0.1:{port}"],
            model="m",
            model_dir=str(model_dir),
            out="",
            start_s=time.monotonic(),
            end_s=end_s,
            requests=[(0.01 * number, 6, 5) for number in range(requests)],
        )
        await Load(spec, out).run()
        server.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        return out.getvalue()

    text = asyncio.run(run())
    return [Row(**json.loads(line)) for line in text.splitlines()], bodies


def test_first_and_last_token_and_the_counts_come_from_the_stream(model_dir: Path) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        # The first token of an answer may have no text.
        writer.write(HEAD + chunk(b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(chunk(event("a")))
        await writer.drain()
        await asyncio.sleep(0.05)
        # Chunks may end in the middle of a line.
        rest = event("b") + USAGE + b"data: [DONE]\n\n"
        writer.write(chunk(rest[:9]) + chunk(rest[9:]) + b"0\r\n\r\n")

    (row,), (body,) = served(answer, model_dir)
    assert row.status == OK
    assert (row.input_tokens, row.output_tokens) == (7, 4)
    assert row.first_s is not None
    assert row.last_s is not None
    assert row.last_s - row.first_s >= 0.1
    assert row.itl_s == pytest.approx((row.last_s - row.first_s) / 3)
    assert row.ttft_s == pytest.approx(row.first_s - row.planned_s - row.late_s)
    document = json.loads(body)
    assert (document["model"], document["max_tokens"], document["stream"]) == ("m", 5, True)
    assert len(document["messages"][0]["content"].split()) == 6 - 2


def test_a_refusal_keeps_its_status_and_its_words(model_dir: Path) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 529 Overloaded\r\nContent-Length: 4\r\n\r\nbusy")

    (row,), _ = served(answer, model_dir)
    assert (row.status, row.why) == (529, "busy")
    assert row.ttft_s is None
    assert row.itl_s is None


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"nonsense\r\n\r\n",
        HEAD + chunk(event("a")),
        HEAD + chunk(event("a")) + b"0\r\n\r\n",
        HEAD + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n",
        HEAD + chunk(b"event: error\ndata: {}\n\n") + b"0\r\n\r\n",
        HEAD + b"zz\r\n",
    ],
    ids=["nothing", "no http", "cut", "no end", "no token", "error", "no size"],
)
def test_a_stream_that_is_not_whole_is_no_answer(model_dir: Path, sent: bytes) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)

    (row,), _ = served(answer, model_dir)
    assert row.status == BROKEN
    assert row.why


def test_what_has_not_ended_in_time_is_unfinished_and_nothing_waits_for_it(model_dir: Path) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(event("a")))
        await writer.drain()
        await asyncio.Event().wait()

    rows, _ = served(answer, model_dir, requests=3, end_s=0.3)
    assert [row.status for row in rows] == [UNFINISHED] * 3
    assert all(row.itl_s is None for row in rows)


def test_an_answer_that_comes_with_the_end_is_counted_once(model_dir: Path) -> None:
    """The loop is held up until the time is over: answer and end are due together."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        whole = chunk(event("a")) + chunk(USAGE) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        writer.write(HEAD + whole)
        time.sleep(0.5)  # what a starved machine does to it

    rows, _ = served(answer, model_dir, end_s=0.4)
    assert len(rows) == 1


def test_prompts_have_their_length_and_the_same_seed_gives_the_same(model_dir: Path) -> None:
    one, same, other = (Prompts(model_dir, seed) for seed in (1, 1, 2))
    text = one.of(50)
    assert len(text.split()) == 48
    assert text == same.of(50) != other.of(50)
    assert one.of(1).split()


def test_a_row_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    assert read_rows(path) == []
    whole = {"index": 0, "planned_s": 0.0, "input_tokens": 1, "output_tokens": 1, "frontend": 0}
    path.write_text(json.dumps(whole | {"index": 1}) + "\n" + json.dumps(whole) + '\n{"ind')
    assert [row.index for row in read_rows(path)] == [0, 1]
