"""All parts of the plugin over real gRPC and HTTP on loopback, with a gateway of our own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gateway_fake import Caller, FakeGateway
from plugin_cases import asking, planned

from wattline.core.errors import InputError
from wattline.drivers.dynamo.plugin.messages import DECODE, PREFILL, Override, Registration
from wattline.drivers.dynamo.plugin.registration import Registrar, gateway_target
from wattline.drivers.dynamo.plugin.state_file import write_state
from wattline.live.plugin import PluginProcess, PluginSettings

ANY = "127.0.0.1:0"


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.02)


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    gateway = FakeGateway({"right-secret"})
    yield gateway
    gateway.close()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("right-secret\n")
    return path


def registrar(gateway: str, secret: Path, plugin_id: str = "wattline") -> Registrar:
    registration = Registration(
        plugin_id=plugin_id,
        plugin_type="constrain",
        priority=50,
        endpoint="grpc://127.0.0.1:9095",
        version="0",
        auth_token="",
    )
    return Registrar(gateway, registration, secret, heartbeat_s=0.05)


def test_calls_are_answered_from_the_newest_plan_and_shown(tmp_path: Path) -> None:
    state = tmp_path / "plan.json"
    write_state(state, planned(5000.0), made_s=time.time())
    process = PluginProcess(PluginSettings(state=state, listen=ANY, metrics=ANY, stale_s=3600.0))
    caller = Caller(process.server.endpoint)
    try:
        assert process.page is not None
        assert get(process.page.port, "/readyz") == (503, "planner: has not called yet\n")
        result = caller.constrain(asking((4, 4), (2, 2)))
        assert isinstance(result, Override)
        assert {t.role: t.replicas for t in result.targets} == {PREFILL: 2, DECODE: 3}
        write_state(state, planned(6000.0, version=8), made_s=time.time())
        wait_until(lambda: process.view().service.plan == planned(6000.0, version=8), "new plan")
        result = caller.constrain(asking((4, 4), (2, 2)))
        assert isinstance(result, Override)
        assert {t.role: t.replicas for t in result.targets} == {PREFILL: 3, DECODE: 3}
        assert caller.raw("PluginLifecycle/Bootstrap", b"").startswith(b"\x08\x01")
        assert caller.raw("ProposePlugin/Propose", b"") == b"\x0a\x00"

        assert get(process.page.port, "/readyz") == (200, "ready\n")
        assert get(process.page.port, "/healthz")[0] == 200
        assert get(process.page.port, "/else")[0] == 404
        page = get(process.page.port, "/metrics")[1]
        for line in (
            'wattline_plugin_calls_total{method="Constrain",result="override"} 2.0',
            'wattline_plugin_ceiling_replicas{role="decode"} 3.0',
            'wattline_plugin_verdicts_total{code="clamped"} 2.0',
            "wattline_plugin_charged_watts 6000.0",
            "wattline_plugin_usable_watts 6000.0",
            "wattline_plugin_ready 1.0",
            "wattline_plugin_answer_seconds_count 3.0",
        ):
            assert line in page.splitlines(), page
    finally:
        caller.close()
        process.close()


def test_two_processes_cannot_share_a_port(tmp_path: Path) -> None:
    state = tmp_path / "plan.json"
    process = PluginProcess(PluginSettings(state=state, listen=ANY))
    try:
        taken = f"127.0.0.1:{process.server.port}"
        with pytest.raises(InputError, match="listen"):
            PluginProcess(PluginSettings(state=state, listen=taken))
    finally:
        process.close()


def test_the_planner_s_breaker_is_shown_from_its_page(tmp_path: Path) -> None:
    page = (
        b'dynamo_planner_plugin_circuit_state{plugin_id="wattline"} 1.0\n'
        b'dynamo_planner_plugin_circuit_state{plugin_id="builtin_load_propose"} 0.0\n'
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
        settings = PluginSettings(
            state=tmp_path / "plan.json", listen=ANY, metrics=ANY, planner_metrics=url
        )
        process = PluginProcess(settings)
        try:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(page)}\r\n\r\n"
                connection.sendall(head.encode() + page)
            wait_until(lambda: process.view().circuits == {"wattline": 1.0}, "the breaker")
            assert "breaker is open: unconstrained" in "\n".join(process.view().not_ready())
        finally:
            process.close()


def test_registered_through_restarts_of_the_gateway(secret: Path) -> None:
    gateway = FakeGateway({"right-secret"})
    port = gateway.port
    ours = registrar(gateway.address, secret)
    ours.start()
    try:
        wait_until(lambda: gateway.heartbeats > 2, "heartbeats")
        assert gateway.plugins["wattline"][0] == "grpc://127.0.0.1:9095"
        gateway.close()
        wait_until(lambda: not ours.view.registered, "that it is gone")
        assert "UNAVAILABLE" in (ours.view.why_not or "")
        gateway = FakeGateway({"right-secret"}, f"127.0.0.1:{port}")
        wait_until(lambda: gateway.heartbeats > 0, "the new gateway")
        assert ours.view.accepted == 2
        assert ours.view.why_not is None
    finally:
        ours.stop()
        assert gateway.plugins == {}
        gateway.close()


def test_a_forgetful_gateway_is_registered_with_again(gateway: FakeGateway, secret: Path) -> None:
    ours = registrar(gateway.address, secret)
    ours.start()
    try:
        wait_until(lambda: ours.view.registered, "registered")
        gateway.plugins.clear()
        wait_until(lambda: ours.view.accepted == 2, "registered again")
        assert gateway.plugins == {"wattline": ("grpc://127.0.0.1:9095", "right-secret")}
    finally:
        ours.stop()


def test_an_entry_of_our_own_from_before_a_crash_is_replaced(
    gateway: FakeGateway, secret: Path
) -> None:
    gateway.plugins["wattline"] = ("grpc://127.0.0.1:1", "right-secret")
    ours = registrar(gateway.address, secret)
    ours.start()
    try:
        wait_until(lambda: ours.view.registered, "registered")
        assert gateway.plugins["wattline"][0] == "grpc://127.0.0.1:9095"
    finally:
        ours.stop()


def test_an_id_of_somebody_else_is_left_to_them(gateway: FakeGateway, secret: Path) -> None:
    gateway.plugins["wattline"] = ("grpc://127.0.0.1:1", "another-secret")
    ours = registrar(gateway.address, secret)
    ours.start()
    try:
        wait_until(lambda: "another --id" in (ours.view.why_not or ""), "the refusal")
    finally:
        ours.stop()
    assert gateway.plugins["wattline"] == ("grpc://127.0.0.1:1", "another-secret")


def test_a_wrong_secret_is_said_and_a_corrected_file_is_enough(
    gateway: FakeGateway, secret: Path
) -> None:
    secret.write_text("wrong\n")
    ours = registrar(gateway.address, secret)
    ours.start()
    try:
        wait_until(lambda: "static_secrets" in (ours.view.why_not or ""), "the refusal")
        assert gateway.plugins == {}
        secret.write_text("right-secret\n")
        wait_until(lambda: ours.view.registered, "registered")
        secret.unlink()
        wait_until(lambda: "No such file" in (ours.view.why_not or ""), "the missing file")
        assert not ours.view.registered
        secret.write_text("right-secret\n")
        wait_until(lambda: ours.view.registered, "registered again")
        assert gateway.plugins["wattline"][1] == "right-secret"
        assert ours.view.why_not is None
    finally:
        ours.stop()


def test_a_gateway_on_a_unix_socket(tmp_path: Path, secret: Path) -> None:
    path = tmp_path / "g.sock"
    gateway = FakeGateway({"right-secret"}, f"unix:{path}")
    ours = registrar(f"unix://{path}", secret)
    ours.start()
    try:
        wait_until(lambda: ours.view.registered, "registered")
        assert gateway.plugins == {"wattline": ("grpc://127.0.0.1:9095", "right-secret")}
    finally:
        ours.stop()
        gateway.close()


@pytest.mark.parametrize("gateway", ["unix://relative", "tcp://a:1", "nowhere", "a:99999", ""])
def test_gateways_that_cannot_be(gateway: str) -> None:
    with pytest.raises(InputError):
        gateway_target(gateway)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--listen", "9095"], "must be host:port"),
        (["--secret-file", "secret"], "is for --register"),
        (["--endpoint", "http://a:1"], "must be grpc://host:port"),
        (["--register", "127.0.0.1:1", "--secret-file", "none"], "No such file"),
        (["--id", ""], "1 to 100 printable"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, options: list[str], said: str) -> None:
    done = subprocess.run(
        [*COMMAND, "--state", "plan.json", "--listen", ANY, *options],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert said in done.stderr
    assert done.returncode == 2


COMMAND = [
    sys.executable,
    "-c",
    "import sys\n"
    "from wattline.cli.dynamo_plugin import dynamo_plugin\n"
    "from wattline.core.errors import WattlineError\n"
    "try:\n"
    "    dynamo_plugin(standalone_mode=False)\n"
    "except WattlineError as error:\n"
    "    print(error, file=sys.stderr)\n"
    "    sys.exit(error.exit_code)\n",
]


def test_the_command_leaves_the_gateway_when_it_is_asked_to_end(
    tmp_path: Path, gateway: FakeGateway, secret: Path
) -> None:
    write_state(tmp_path / "plan.json", planned(5000.0, wanted=(1, 1)), made_s=time.time())
    command = [
        *COMMAND, "--state", str(tmp_path / "plan.json"), "--listen", ANY, "--propose",
        "--register", gateway.address, "--secret-file", str(secret), "--log-format", "json",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: len(gateway.plugins) == 2, "both stages")
            assert set(gateway.plugins) == {"wattline", "wattline-propose"}
            endpoint = gateway.plugins["wattline"][0]
            caller = Caller(endpoint)
            assert isinstance(caller.constrain(asking((2, 2), (1, 1))), Override)
            caller.close()
        finally:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert gateway.plugins == {}
