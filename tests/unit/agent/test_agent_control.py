"""Commands as JSON: whole and plain, or refused in one line; answers that never come."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.agent.commands import Brake, Command, Hold, Pin, Restore, Resume
from wattline.agent.control import COMMANDS, decode_command, encode_command, fetch, send
from wattline.core.errors import InputError, WattlineError

WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=50)
WATTS = st.floats(min_value=0.001, max_value=1e5, allow_nan=False)
ALL: st.SearchStrategy[Command] = st.one_of(
    st.builds(Brake, by=WORDS),
    st.builds(Hold, by=WORDS, why=WORDS),
    st.builds(Pin, by=WORDS, why=WORDS, gpu=WORDS, watts=WATTS),
    st.builds(Resume, by=WORDS, gpu=st.none() | WORDS),
    st.builds(Restore, by=WORDS, gpu=st.none() | WORDS),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["by", "why", "gpu", "watts", "x"]), inner, max_size=5)
    ),
    max_leaves=6,
)


@given(ALL)
def test_commands_are_read_back(command: Command) -> None:
    assert decode_command(*encode_command(command)) == command


@given(name=st.sampled_from([*COMMANDS, "", "exec"]), document=JSON)
def test_any_document_is_a_command_or_refused_in_one_line(name: str, document: object) -> None:
    refusal = ""
    try:
        command = decode_command(name, json.dumps(document).encode())
    except InputError as error:
        refusal = str(error)
    else:
        assert isinstance(command, COMMANDS[name])
        assert command.by.isprintable()
    assert "\n" not in refusal


@given(name=st.sampled_from([*COMMANDS]), content=st.binary(max_size=60))
def test_any_bytes_are_refused_in_one_line(name: str, content: bytes) -> None:
    try:
        decode_command(name, content)
    except InputError as error:
        text = str(error)
    else:
        text = ""
    assert "\n" not in text


def _listening(path: Path, answer: Callable[[socket.socket], None]) -> threading.Thread:
    """A socket that takes one connection and does `answer` with it."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1)

    def serve() -> None:
        with server, server.accept()[0] as client:
            answer(client)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "look at its logs"),
        (b"garbage\r\n\r\n", "look at its logs"),
        (b"HTTP/1.0 200 OK\r\n\r\nno json", "refused with 200: no json"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"done": true}', "refused with 200"),
        (b"HTTP/1.0 403 No\r\n\r\nnot for\nyou", "refused with 403: not for you"),
    ],
    ids=["empty", "garbage", "no-json", "half", "refused"],
)
def test_answers_that_are_none_end_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "control.sock"

    def answer(client: socket.socket) -> None:
        request = b""
        while not request.endswith(b"}"):  # all of it: what is left unread would reset the answer
            request += client.recv(65536)
        client.sendall(content)

    thread = _listening(path, answer)
    with pytest.raises(WattlineError) as caught:
        send(path, Brake("ann"))
    thread.join()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_silence_ends(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    asked = threading.Event()
    thread = _listening(path, lambda client: (asked.wait(20), None)[1])
    with pytest.raises(WattlineError, match=r"no answer in 0\.1 s"):
        fetch(path, "/status", timeout_s=0.1)
    asked.set()
    thread.join()
