"""Several calls at once: limits, refusals, and use from changing threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from observe_fixtures import Asked, Reply, dead_url, serving

from wattline.core.errors import InputError
from wattline.drivers.http_batch import Answer, Call, HttpBatch, Unanswered


def _echo(asked: Asked) -> Reply:
    return Reply(asked.path.encode(), headers={"Set-Cookie": "kept=1; Path=/"})


def test_answers_stand_in_the_order_of_the_calls() -> None:
    with serving(_echo) as server, HttpBatch(limit_s=10.0, most_bytes=100) as batch:
        answers = batch.run([Call(f"{server.url}/{number}") for number in range(10)])
    assert [each.body for each in answers if isinstance(each, Answer)] == [
        f"/{number}".encode() for number in range(10)
    ]


def test_a_batch_may_be_run_from_another_thread_each_time() -> None:
    with serving(_echo) as server, HttpBatch(limit_s=10.0, most_bytes=100) as batch:
        for number in range(3):
            with ThreadPoolExecutor(1) as pool:
                answers = pool.submit(batch.run, [Call(f"{server.url}/{number}")] * 2).result()
            assert all(isinstance(each, Answer) for each in answers)


def test_no_cookie_is_kept() -> None:
    with serving(_echo) as server, HttpBatch(limit_s=10.0, most_bytes=100) as batch:
        batch.run([Call(server.url)])
        batch.run([Call(server.url)])
    assert all("Cookie" not in asked.headers for asked in server.asked)


def test_content_and_headers_are_sent() -> None:
    with serving(_echo) as server, HttpBatch(limit_s=10.0, most_bytes=100) as batch:
        batch.run([Call(server.url, (("a", "b c"),), "POST", b"{}", {"X-Y": "z"})])
    asked = server.asked[0]
    assert (asked.method, asked.path, asked.body) == ("POST", "/?a=b+c", b"{}")
    assert (asked.headers["X-Y"], asked.headers["Content-Type"]) == ("z", "application/json")


def test_who_refuses_is_told_from_who_fails() -> None:
    with serving(lambda asked: Reply(b"x" * 101)) as server:
        calls = [Call(dead_url()), Call(server.url), Call("http://nowhere.invalid/")]
        with HttpBatch(limit_s=10.0, most_bytes=100) as batch:
            answers = batch.run(calls)
    told = [(each.refused, each.maybe_sent) for each in answers if isinstance(each, Unanswered)]
    assert told == [(True, False), (False, True), (False, False)]


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://[::1", "http://127.0.0.1:99999", "http://", "x", "http://a\x00b"]
)
def test_an_address_that_cannot_be_asked_is_a_reason(url: str) -> None:
    with HttpBatch(limit_s=5.0, most_bytes=100) as batch:
        answer = batch.run([Call(url)])[0]
    assert isinstance(answer, Unanswered)
    assert not answer.refused


def test_a_bundle_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate\n")
    for path in (tmp_path / "ca.pem", tmp_path / "absent.pem"):
        with pytest.raises(InputError, match="CA bundle"):
            HttpBatch(limit_s=1.0, most_bytes=100, verify=path)


def test_closing_lets_go_of_every_descriptor_and_twice_is_harmless() -> None:
    before = set(os.listdir("/proc/self/fd"))
    batch = HttpBatch(limit_s=1.0, most_bytes=100)
    assert set(os.listdir("/proc/self/fd")) > before
    for _ in range(2):
        batch.close()
        assert set(os.listdir("/proc/self/fd")) == before
