"""Everything that the controller reads as a target: how to draw an input and how to feed it."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import fuzz_live_feeds as feeds
import fuzz_live_samples as samples
from fuzz_mutations import Mutator
from fuzz_parsers import Make, Target, documents, json_or_bytes

_HTTP_ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nok",
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nSet-Cookie: a=b\r\n\r\n",
    b"HTTP/1.1 500 " + b"x" * 3000 + b"\r\nA: " + b"y" * 70_000 + b"\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
)


def _pages(pages: list[bytes]) -> Make:
    return lambda mutator: samples.some_page(mutator, pages)


def _configuration(folder: Path) -> Make:
    good = feeds.configuration_document(folder)
    return lambda mutator: mutator.some_json([good])


def _segment(segment: bytes) -> Make:
    """Bytes of the packed file, or lines that are packed after they were mutated."""
    decoder = zlib.decompressobj(31)
    lines = (decoder.decompress(segment) + decoder.flush()).rstrip(b"\n").split(b"\n")

    def make(mutator: Mutator) -> bytes:
        draw = mutator.draw
        if draw.random() < 0.3:
            return mutator.some_bytes([segment])
        mutated = list(lines)
        place = draw.randrange(len(mutated))
        if draw.random() < 0.8:
            mutated[place] = mutator.some_json([json.loads(mutated[place])]).replace(b"\n", b" ")
        elif draw.random() < 0.5:
            del mutated[place]
        else:
            mutated.insert(place, draw.choice(mutated))
        return gzip.compress(b"\n".join(mutated) + b"\n", 1)

    return make


def _http_answers(mutator: Mutator) -> bytes:
    return mutator.some_bytes(_HTTP_ANSWERS)


def _http_reports(mutator: Mutator) -> bytes:
    """Answers of another server, or a report of ours whose places were mutated."""
    if mutator.draw.random() < 0.5:
        return mutator.some_bytes(_HTTP_ANSWERS)
    from fuzz_samples import report_samples

    body = mutator.some_json([json.loads(sample) for sample in report_samples()])
    return b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def _profiles(mutator: Mutator) -> bytes:
    """A JSON pair of which one half is mutated, or an NPZ with mutated columns or bytes."""
    draw = mutator.draw
    pair, grid = samples.profile_documents(), samples.profile_grid()
    if draw.random() < 0.6:
        texts = [json.dumps(each).encode() for each in pair]
        place = draw.randrange(2)
        texts[place] = mutator.some_json([pair[place]])
        return feeds.PAIR_MARK.join(texts)
    if draw.random() < 0.6:
        name = draw.choice(sorted(grid))
        grid[name] = draw.choice(samples.HOSTILE_COLUMNS)
        if draw.random() < 0.2:
            del grid[name]
    packed = samples.packed(grid)
    return packed if draw.random() < 0.5 else b"PK" + mutator.some_bytes([packed[2:]])


def live_targets(files: feeds.LiveFiles) -> list[Target]:
    """All of them."""
    answers = [json.dumps(each).encode() for each in samples.prometheus_answers()]
    return [
        Target("frontend's page", _pages(samples.frontend_pages()), feeds.frontend),
        Target("worker's page", _pages(samples.worker_pages()), files.worker),
        Target("Prometheus answer", json_or_bytes(answers), files.prometheus),
        Target("/busy_threshold answer", documents(samples.THRESHOLD_ANSWERS), files.thresholds),
        Target("HTTP answer", _http_answers, files.http_answer),
        Target("report over HTTP", _http_reports, files.report),
        Target("controller's file", _configuration(files.folder), feeds.configuration),
        Target("command to the controller", documents(samples.COMMANDS), files.command),
        Target("file of orders", documents(samples.ORDERS), files.orders),
        Target("file of the budget", documents(samples.BUDGETS), files.budget),
        Target("recording", _segment(files.segment), files.recording),
        Target("profile", _profiles, files.profile),
        Target("plugin's state", documents(samples.plugin_states()), files.plugin_state),
    ]
