"""What the two servers answer, to whom, and that no request takes them down."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import socket
import stat
import time
from pathlib import Path

import pytest
from face_fixtures import TOKEN, Agent, get, get_json, gpu, serving, snapshot

from wattline.agent.commands import Answer, Brake, Command, Hold, Pin, Restore, Resume
from wattline.agent.control import MAX_COMMAND_BYTES, fetch, send
from wattline.agent.http import MOST_FROM_ONE
from wattline.core.errors import InputError, WattlineError
from wattline.drivers.http_server import BoundedServer


def test_reading(tmp_path: Path) -> None:
    agent = Agent(snapshot(gpu(0)))
    with serving(agent, tmp_path) as servers:
        assert get(servers.address, "/report") == (200, '{"protocol": 1}\n')
        assert (
            'wattline_agent_gpu_draw_watts{gpu="GPU-0"} 390.5'
            in get(servers.address, "/metrics")[1]
        )
        assert get(servers.address, "/healthz")[0] == 200
        assert get(servers.address, "/readyz") == (200, "ready\n")
        assert "/metrics" in get(servers.address, "/")[1]
        assert get(servers.address, "/report?x=1")[0] == 200
        assert get(servers.address, "/nothing")[0] == 404
        assert get(servers.address, "/healthz", "HEAD") == (200, "")
        status = get_json(servers.address, "/status")
        assert status["gpus"][0]["throttle_reasons"] == ["sw_power_cap"]
        assert status["sources"] == {"grants": 0.2, "pods": None}
        assert 0.0 <= status["age_s"] < 60.0


def test_the_read_only_server_takes_no_commands(tmp_path: Path) -> None:
    agent = Agent(snapshot())
    with serving(agent, tmp_path) as servers:
        assert get(servers.address, "/brake", "POST")[0] == 405
        assert get(servers.address, "/brake", "PUT")[0] == 501
        assert get(servers.address, "/brake")[0] == 404
    assert agent.asked == []


def test_health_is_the_age_of_the_snapshot(tmp_path: Path) -> None:
    agent = Agent(None)
    with serving(agent, tmp_path) as servers:
        for path in ("/healthz", "/readyz", "/report", "/status"):
            assert get(servers.address, path)[0] == 503
        agent.shown = snapshot(made_s=time.monotonic() - 11.0)
        assert get(servers.address, "/healthz")[0] == 503
        agent.shown = snapshot()
        assert get(servers.address, "/healthz")[0] == 200


def test_readiness_names_what_is_missing(tmp_path: Path) -> None:
    agent = Agent(snapshot(not_ready=("no grants yet", "no GPU seen")))
    with serving(agent, tmp_path) as servers:
        assert get(servers.address, "/readyz") == (503, "no grants yet\nno GPU seen\n")
        assert get(servers.address, "/healthz")[0] == 200


def test_the_token_is_asked_for_but_not_by_probes(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n", encoding="utf-8")
    with serving(Agent(snapshot()), tmp_path, token_file=token_file) as servers:
        for path in ("/metrics", "/report", "/status", "/", "/nothing"):
            assert get(servers.address, path)[0] == 401
        for wrong in (TOKEN[:-1], TOKEN + "0", "", "\xe4" * 32):
            headers = {"Authorization": f"Bearer {wrong}"}
            assert get(servers.address, "/report", headers=headers)[0] == 401
        assert get(servers.address, "/report", headers={"Authorization": TOKEN})[0] == 401
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert get(servers.address, "/report", headers=bearer)[0] == 200
        assert get(servers.address, "/healthz")[0] == 200
        assert get(servers.address, "/readyz")[0] == 200


def test_the_token_may_be_changed_while_running(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN, encoding="utf-8")
    old, new = ({"Authorization": f"Bearer {word}"} for word in (TOKEN, TOKEN[::-1]))
    with serving(Agent(snapshot()), tmp_path, token_file=token_file) as servers:
        token_file.write_text(TOKEN[::-1], encoding="utf-8")
        assert get(servers.address, "/report", headers=old)[0] == 401
        assert get(servers.address, "/report", headers=new)[0] == 200
        token_file.unlink()
        assert get(servers.address, "/report", headers=new)[0] == 503
        assert get(servers.address, "/healthz")[0] == 200


def test_addresses_and_tokens_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="token"),
        serving(Agent(None), tmp_path, listen="0.0.0.0:0"),
    ):
        pass
    short = tmp_path / "short"
    short.write_text("secret", encoding="utf-8")
    with pytest.raises(InputError, match="16"), serving(Agent(None), tmp_path, token_file=short):
        pass
    with serving(Agent(None), tmp_path) as servers:
        other = tmp_path / "other"
        other.mkdir()
        with (
            pytest.raises(InputError, match="--listen"),
            serving(Agent(None), other, listen=servers.address),
        ):
            pass
        assert list(other.iterdir()) == []
    with pytest.raises(WattlineError), serving(Agent(None), tmp_path / "missing"):
        pass


def test_commands_reach_the_loop_with_the_user_that_the_kernel_names(tmp_path: Path) -> None:
    agent = Agent(snapshot())
    me = f"ann (uid {os.getuid()})"
    with serving(agent, tmp_path):
        control = tmp_path / "control.sock"
        for command in (
            Brake("ann"),
            Hold("ann", "fan"),
            Pin("ann", "hot", "GPU-0", 300.0),
            Resume("ann"),
            Resume("ann", "GPU-0"),
            Restore("ann", "0"),
        ):
            assert send(control, command) == Answer(done=True, text="done")
    assert agent.asked == [
        Brake(me),
        Hold(me, "fan"),
        Pin(me, "hot", "GPU-0", 300.0),
        Resume(me),
        Resume(me, "GPU-0"),
        Restore(me, "0"),
    ]


def test_a_refusal_of_the_loop_comes_back_as_such(tmp_path: Path) -> None:
    agent = Agent(snapshot(), answer=Answer(done=False, text="above what is held: 400 W"))
    with serving(agent, tmp_path):
        answer = send(tmp_path / "control.sock", Pin("ann", "hot", "0", 500.0))
    assert answer == Answer(done=False, text="above what is held: 400 W")


def test_the_control_socket_is_for_its_owner_only_and_goes_with_the_agent(tmp_path: Path) -> None:
    control = tmp_path / "control.sock"
    with serving(Agent(snapshot()), tmp_path):
        found = control.stat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert [path.name for path in tmp_path.iterdir()] == ["control.sock"]
        assert json.loads(fetch(control, "/status"))["node"] == "n1"
    assert not control.exists()
    with pytest.raises(WattlineError, match="no agent listens here"):
        fetch(control, "/status")


def test_the_control_socket_may_lie_deep(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    agent = Agent(snapshot())
    for _ in range(2):
        with serving(agent, folder):
            assert send(folder / "control.sock", Brake("ann")).done
            with pytest.raises(WattlineError, match="another agent"), serving(agent, folder):
                pass
        assert list(folder.iterdir()) == []
    with pytest.raises(WattlineError, match="no agent listens"):
        fetch(folder / "control.sock", "/status")


def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "control.sock"))
    stale.close()
    with pytest.raises(WattlineError, match="no agent listens here"):
        fetch(tmp_path / "control.sock", "/status")
    with serving(Agent(snapshot()), tmp_path):
        assert fetch(tmp_path / "control.sock", "/healthz")


def _raw_command(control: Path, request: bytes) -> bytes:
    """The answer to a request; a refusal may come before the request was read to its end."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(control))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(65536):
                answer += part
    return answer


def _post(path: str, body: bytes, length: str | None = None) -> bytes:
    head = f"POST {path} HTTP/1.0\r\nContent-Length: {length or len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (_post("/brake", b'{"by": "ann"}', "-1"), b"411"),
        (_post("/brake", b'{"by": "ann"}', "\u0661"), b"411"),
        (b"POST /brake HTTP/1.0\r\n\r\n", b"411"),
        (_post("/brake", b"{}" + b" " * MAX_COMMAND_BYTES), b"413"),
        (_post("/brake", b"{}", "9999999999"), b"411"),
        (_post("/brake", b"{}"), b"400"),
        (_post("/brake", b'{"by": ""}'), b"400"),
        (_post("/brake", b'{"by": "a\\nb"}'), b"400"),
        (_post("/brake", b'{"by": "a", "x": 1}'), b"400"),
        (_post("/brake", b"[" * 4000), b"400"),
        (_post("/brake", b"\xff\xfe"), b"400"),
        (_post("/explode", b'{"by": "a"}'), b"400"),
        (_post("/hold", b'{"by": "a", "why": "%s"}' % (b"x" * 201)), b"400"),
        (_post("/pin", b'{"by": "a", "why": "b", "gpu": "0", "watts": NaN}'), b"400"),
        (_post("/pin", b'{"by": "a", "why": "b", "gpu": "0", "watts": 1e999}'), b"400"),
        (_post("/pin", b'{"by": "a", "why": "b", "gpu": "0", "watts": true}'), b"400"),
        (_post("/pin", b'{"by": "a", "why": "b", "gpu": "0", "watts": -5}'), b"400"),
        (_post("/pin", b'{"by": "a", "why": "b", "gpu": "0", "watts": %s}' % (b"9" * 400)), b"400"),
    ],
    ids=lambda value: repr(value[:60]) if len(value) > 3 else value.decode(),
)
def test_commands_that_are_not_whole_are_refused(
    tmp_path: Path, request_bytes: bytes, status: bytes
) -> None:
    agent = Agent(snapshot())
    with serving(agent, tmp_path):
        answer = _raw_command(tmp_path / "control.sock", request_bytes)
        assert answer.split()[1] == status
        assert b"Traceback" not in answer
        assert send(tmp_path / "control.sock", Brake("ann")).done
    assert len(agent.asked) == 1


def test_garbage_never_takes_a_server_down(tmp_path: Path) -> None:
    random_bytes = random.Random(20240131)
    words = [b"GET", b"POST", b" ", b"/report", b"HTTP/1.1", b"\r\n", b":", b"Content-Length: 5"]
    agent = Agent(snapshot())
    with serving(agent, tmp_path) as servers:
        host, _, port = servers.address.rpartition(":")
        for number in range(200):
            with socket.create_connection((host, int(port)), timeout=20) as client:
                if number % 2:
                    content = random_bytes.randbytes(random_bytes.randrange(300))
                else:
                    content = b"".join(random_bytes.choices(words, k=random_bytes.randrange(12)))
                try:
                    client.sendall(content)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(65536):
                        pass
                except (ConnectionResetError, BrokenPipeError):
                    continue
        assert get(servers.address, "/healthz")[0] == 200
    assert agent.asked == []


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"GET /" + b"a" * 70000 + b" HTTP/1.0\r\n\r\n", b"414"),
        (b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
        (b"GET / HTTP/1.0\r\na: " + b"b" * 70000 + b"\r\n\r\n", b"431"),
        (b"BREW / HTTP/1.0\r\n\r\n", b"501"),
        (b"GET / HTTP/9.9\r\n\r\n", b"cannot"),  # answered as HTTP/0.9, without a status
    ],
    ids=["path", "headers", "header", "method", "version"],
)
def test_sizes_are_bounded(tmp_path: Path, content: bytes, status: bytes) -> None:
    with serving(Agent(snapshot()), tmp_path):
        answer = _raw_command(tmp_path / "control.sock", content)
        assert answer.split()[1] == status


def test_too_many_at_a_time_are_closed_and_slow_ones_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedServer, "request_s", 0.5)
    with serving(Agent(snapshot()), tmp_path) as servers:
        host, _, port = servers.address.rpartition(":")
        slow = [
            socket.create_connection((host, int(port)), timeout=20) for _ in range(MOST_FROM_ONE)
        ]
        try:
            with socket.create_connection((host, int(port)), timeout=20) as late:
                assert late.recv(100) == b""
            other = ("127.0.0.2", 0)
            with socket.create_connection((host, int(port)), 20, source_address=other) as probe:
                probe.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                assert b" 200 " in probe.recv(100)
            for client in slow:
                assert client.recv(100) == b""
        finally:
            for client in slow:
                client.close()
        end_s = time.monotonic() + 20
        while True:
            try:
                assert get(servers.address, "/healthz")[0] == 200
                break
            except (ConnectionError, http.client.HTTPException):
                assert time.monotonic() < end_s


def test_a_loop_that_raises_does_not_end_the_server(tmp_path: Path) -> None:
    agent = Agent(snapshot())

    def raises(command: Command) -> Answer:
        raise RuntimeError("a bug")

    agent.submit = raises  # type: ignore[method-assign]
    control = tmp_path / "control.sock"
    with serving(agent, tmp_path):
        with pytest.raises(WattlineError, match=re.escape(str(control))):
            send(control, Brake("ann"))
        assert fetch(control, "/healthz")
