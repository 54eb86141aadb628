"""The HTTP interface and the commands that use it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from controller_world import World
from prometheus_client.parser import text_string_to_metric_families

from wattline.cli.operate import operate
from wattline.controller.http import Face, HttpServer
from wattline.controller.metric_catalogue import CATALOGUE
from wattline.controller.metrics import exposition
from wattline.core.errors import InputError
from wattline.drivers.http_server import read_token

TOKEN = "0123456789abcdef0123"


class Served:
    """A controller with its server."""

    def __init__(self, folder: Path, token_file: Path | None) -> None:
        self.world = World(folder)
        self.world.start()
        controller = self.world.assembly.controller
        fleet = controller.parts.site.fleet
        self.face = Face(
            view=lambda: controller.view,
            metrics=exposition(lambda: controller.view, fleet),
            command=self.world.assembly.desk,
            fleet=fleet,
            stale_s=60.0,
        )
        self.server = HttpServer(self.face, listen="127.0.0.1:0", token_file=token_file)

    def ask(
        self, path: str, body: object = None, token: str | None = TOKEN, method: str | None = None
    ) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.server.address, timeout=30)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        how = method or ("GET" if body is None else "POST")
        connection.request(how, path, content, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def close(self) -> None:
        self.server.close()
        self.world.stop()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    made = Served(tmp_path, token)
    yield made
    made.close()


HOLD = {"by": "ann", "why": "a test"}


def test_before_the_first_tick_nothing_is_ready(served: Served) -> None:
    for path in ("/healthz", "/readyz", "/state"):
        assert served.ask(path)[0] == 503


def test_reading(served: Served) -> None:
    served.world.run(3)
    assert served.ask("/healthz")[0] == 200
    assert served.ask("/readyz") == (200, "ready\n")
    assert served.ask("/")[0] == 200
    assert served.ask("/none")[0] == 404
    status, text = served.ask("/state", token=None)
    assert status == 200
    page: dict[str, Any] = json.loads(text)
    assert page["budget"]["total_w"] == 2000.0
    assert [pool["name"] for pool in page["pools"]] == ["prefill", "decode"]
    assert len(page["gpus"]) == 4
    assert page["problems"] == []


def test_readiness_names_the_problems(served: Served) -> None:
    served.world.run(1)
    served.world.assembly.controller.tick()
    served.world.clock.now_s += 60.0
    served.world.assembly.controller.tick()
    status, text = served.ask("/readyz")
    assert status == 503
    assert "node n1: its newest report is" in text


def test_metrics_are_those_of_the_catalogue(served: Served) -> None:
    served.world.run(5)
    status, text = served.ask("/metrics")
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(text)}
    names = {metric.name.removesuffix("_total") for metric in CATALOGUE}
    assert {name for name in families if not name.startswith(("process_", "python_"))} <= names
    for name in (
        "dynamo_planner_power_budget_total_watts",
        "dynamo_planner_power_projected_watts",
        "dynamo_planner_power_budget_utilization",
        "dynamo_planner_admission_partial_success",
        "wattline_controller_cap_watts",
        "wattline_controller_reason",
    ):
        assert families[name].samples
    budget = families["dynamo_planner_power_budget_total_watts"].samples[0].value
    assert budget == 2000.0


@pytest.mark.parametrize("token", [None, "wrong", "", TOKEN + "x", "tökén"])
def test_commands_need_the_token(served: Served, token: str | None) -> None:
    given = None if token is None else token.encode().decode("latin-1")
    assert served.ask("/hold", HOLD, token=given)[0] == 401
    orders = served.world.assembly.controller.parts.orders
    assert orders.in_force(served.world.clock.now_s) == ()


def test_without_a_token_file_there_are_no_commands(tmp_path: Path) -> None:
    served = Served(tmp_path, None)
    try:
        assert served.ask("/hold", HOLD)[0] == 403
    finally:
        served.close()


def test_a_command_is_carried_out_with_the_next_tick(served: Served) -> None:
    status, text = served.ask("/hold", HOLD)
    assert (status, json.loads(text)["done"]) == (
        200,
        "order 1: everything is held until it is taken back",
    )
    served.world.run(1)
    assert json.loads(served.ask("/state")[1])["orders"][0]["by"] == "ann"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/none", {}, 404),
        ("/hold", b"{", 400),
        ("/hold", b"[" * 60_000, 400),
        ("/hold", b"\xff\xfe", 400),
        ("/hold", {"by": 1, "why": "x"}, 400),
        ("/budget", {**HOLD, "total_w": 1e308}, 400),
        ("/budget", b'{"by":"a","why":"b","total_w":NaN}', 400),
        ("/pin", {**HOLD, "pool": "x" * 300, "cap_w": 300}, 400),
        ("/hold", b"x" * 70_000, 413),
    ],
)
def test_bad_commands_are_one_line(served: Served, path: str, body: object, status: int) -> None:
    found, text = served.ask(path, body)
    assert found == status
    assert len(text.splitlines()) == 1


def test_other_methods_are_refused(served: Served) -> None:
    assert served.ask("/state", method="DELETE")[0] in (405, 501)
    assert served.ask("/healthz", method="HEAD")[0] == 503


def test_tokens_that_are_none(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("abc")
    for path in (short, tmp_path / "none"):
        with pytest.raises(InputError):
            read_token(path)


def test_the_operators_commands(served: Served, tmp_path: Path) -> None:
    served.world.run(2)
    runner = CliRunner()
    options = ["--url", f"http://{served.server.address}", "--token-file", str(tmp_path / "token")]

    def call(*words: str) -> str:
        result = runner.invoke(operate, [*options, *words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    why = ["--why", "a test", "--by", "ann"]
    assert "budget 1500 W until" in call("budget", "1500", "--for", "2h", *why)
    assert "pinned to 300 W" in call("pin", "decode", "--cap-w", "300", *why)
    assert "n1 is cordoned" in call("cordon", "n1", *why)
    assert "everything is held" in call("hold", "--for", "90s", *why)
    served.world.run(1)
    shown = call("status")
    assert "set by ann: a test" in shown
    assert "operator_hold" in shown
    assert "order 1: pin decode 300 W by ann until it is taken back: a test" in shown
    assert "order 2: cordon n1 by ann" in shown
    assert json.loads(call("status", "--json"))["budget"]["total_w"] == 1500.0
    assert "3 orders are taken back" in call("resume", *why)
    assert "back to configuration" in call("budget", "clear", *why)
    audit = (tmp_path / "state" / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["by"] for line in audit] == ["ann"] * 6


def test_status_says_what_is_missing_and_what_became_of_a_reload(
    served: Served, tmp_path: Path
) -> None:
    served.world.demand.why = "http://f: refuses connections"
    served.world.config.write_text("budget: {total_w: 35oo}")
    served.world.assembly.reload()
    served.world.run(1)
    options = ["--url", f"http://{served.server.address}", "--token-file", str(tmp_path / "token")]
    shown = CliRunner().invoke(operate, [*options, "status"], catch_exceptions=False).output
    assert "missing: chat: demand: http://f: refuses connections" in shown
    assert "configuration read again: refused: " in shown


def test_a_refused_token_is_said_with_the_remedy(served: Served) -> None:
    options = ["--url", f"http://{served.server.address}"]
    result = CliRunner().invoke(operate, [*options, "hold", "--why", "a test"])
    assert "401: give the bearer token with --token-file" in str(result.exception)


def test_a_controller_that_is_not_there_is_said() -> None:
    result = CliRunner().invoke(operate, ["--url", "http://127.0.0.1:9", "status"])
    assert "is the controller running there?" in str(result.exception)
