"""`wattline operate`: orders to a running controller, over its HTTP interface."""

from __future__ import annotations

import getpass
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from wattline.core.errors import InputError, WattlineError

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_LIMIT_S = 10.0
_MOST_MISSING = 5


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """`30m` and its like in seconds."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])", str(value), re.ASCII)
        if match is None:
            self.fail(f"{value!r}: write 90s, 30m, 8h or 2d", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


def _ordered(command: F) -> F:
    """Options that every order takes."""
    for option in (
        click.option("--why", required=True, help="The reason; shown in every later decision."),
        click.option("--by", default=getpass.getuser, help="Who orders it (default: your user)."),
    ):
        command = option(command)
    return command


def _timed(command: F) -> F:
    option = click.option(
        "--for", "for_s", type=_Duration(), metavar="TIME", help="Ends by itself: 90s, 30m, 8h."
    )
    return option(command)


@click.group(
    epilog="""\b
Examples:
  wattline operate status
  wattline operate budget 20000 --for 2h --by ann --why "utility asks for less"
  wattline operate pin decode --cap-w 400 --why "comparing"
  wattline operate cordon node-3 --why "new PSU"
  wattline operate resume node-3 --why "done"
"""
)
@click.option(
    "--url",
    envvar="WATTLINE_CONTROLLER_URL",
    default="http://127.0.0.1:9480",
    show_default=True,
    help="The controller's address (WATTLINE_CONTROLLER_URL).",
)
@click.option(
    "--token-file",
    envvar="WATTLINE_TOKEN_FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the bearer token (WATTLINE_TOKEN_FILE).",
)
@click.pass_context
def operate(context: click.Context, url: str, token_file: Path | None) -> None:
    """Ask a running controller, or give it an order.

    Every order is audited with who, why and until when, outlives a restart of the controller, and
    stands in the reasons of every decision while it is in force.
    """
    context.obj = _Client(url, token_file)


@operate.command()
@click.option("--json", "as_json", is_flag=True, help="Print the whole state as JSON.")
@click.pass_obj
def status(client: _Client, as_json: bool) -> None:
    """Show budget, pools, orders and problems."""
    text = client.get("/state")
    if as_json:
        click.echo(text, nl=False)
        return
    page = json.loads(text)
    budget = page["budget"]
    click.echo(
        f"tick {page['tick']}{', advisory' if page['advisory'] else ''}: booked "
        f"{budget['booked_w']:,.0f} of {budget['usable_w']:,.0f} W "
        f"(budget {budget['total_w']:,.0f} W, {budget['cause']})"
    )
    for pool in page["pools"]:
        click.echo(f"  {pool['name']}: {pool['ready']} ready; {pool['reason']}")
        click.echo(f"    {pool['sentence']}")
    for order in page["orders"]:
        click.echo(_order_line(order))
    if page["reload"]:
        click.echo(f"configuration read again: {page['reload']}")
    for missing in page["missing"][:_MOST_MISSING]:
        click.echo(f"missing: {missing}")
    if len(page["missing"]) > _MOST_MISSING:
        click.echo(f"missing: {len(page['missing']) - _MOST_MISSING} more; all are in --json")
    for problem in page["problems"]:
        click.echo(f"problem: {problem}")


def _order_line(order: dict[str, Any]) -> str:
    """One order: what it is about, who gave it, until when, and why."""
    from wattline.recording.orders import until_text

    what = [order["kind"], order["pool"] or order["node"] or "".join(order["gpus"][:1])]
    if order["cap_w"] is not None:
        what.append(f"{order['cap_w']:g} W")
    if order["replicas"] is not None:
        what.append(f"{order['replicas']} replicas")
    until = until_text(order["until_s"])
    words = " ".join(word for word in what if word)
    return f"order {order['id']}: {words} by {order['by']} {until}: {order['why']}"


@operate.command()
@click.argument("watts", metavar="WATTS|clear")
@_timed
@_ordered
@click.pass_obj
def budget(client: _Client, watts: str, for_s: float | None, by: str, why: str) -> None:
    """Set the budget to WATTS, or go back to configuration and schedule."""
    body: dict[str, Any] = {"by": by, "why": why, "for_s": for_s}
    if watts == "clear":
        body["clear"] = True
    else:
        try:
            body["total_w"] = float(watts)
        except ValueError:
            raise InputError("WATTS", watts, "give watts, or clear") from None
    client.post("budget", body)


@operate.command()
@_timed
@_ordered
@click.pass_obj
def hold(client: _Client, for_s: float | None, by: str, why: str) -> None:
    """Raise, start, drain and admit nothing new; lowerings that the budget needs still happen."""
    client.post("hold", {"by": by, "why": why, "for_s": for_s})


@operate.command()
@click.argument("pool")
@click.option("--cap-w", type=float, help="Limit of each of its serving GPUs, watts.")
@click.option("--replicas", type=int, help="Number of its replicas.")
@_timed
@_ordered
@click.pass_obj
def pin(
    client: _Client,
    pool: str,
    cap_w: float | None,
    replicas: int | None,
    for_s: float | None,
    by: str,
    why: str,
) -> None:
    """Keep POOL at a cap, or at a number of replicas."""
    body = {"by": by, "why": why, "for_s": for_s, "pool": pool}
    client.post("pin", {**body, "cap_w": cap_w, "replicas": replicas})


@operate.command()
@click.argument("node")
@_timed
@_ordered
@click.pass_obj
def cordon(client: _Client, node: str, for_s: float | None, by: str, why: str) -> None:
    """Take NODE out: no new replica, no raise; its replicas drain."""
    client.post("cordon", {"by": by, "why": why, "for_s": for_s, "node": node})


@operate.command()
@click.argument("what", metavar="NODE|GPU")
@_timed
@_ordered
@click.pass_obj
def restore(client: _Client, what: str, for_s: float | None, by: str, why: str) -> None:
    """Give NODE's GPUs, or one GPU by its UUID, their original limits back.

    They are granted as watts come free, then their node lets go of them. Refused where they do not
    fit the budget with all other GPUs at their lowest limits.
    """
    client.post("restore", {"by": by, "why": why, "for_s": for_s, "what": what})


@operate.command()
@click.argument("what", default="all")
@_ordered
@click.pass_obj
def resume(client: _Client, what: str, by: str, why: str) -> None:
    """Take orders back: all, or those with an id, or of a pool, a node or a restored GPU."""
    client.post("resume", {"by": by, "why": why, "what": what})


@operate.command("attest-off")
@click.argument("node")
@_ordered
@click.pass_obj
def attest_off(client: _Client, node: str, by: str, why: str) -> None:
    """Say that NODE, which no longer reports, is powered off: its watts come free.

    Say it only of a node that you have seen to be off. A later report of it undoes this.
    """
    client.post("attest-off", {"by": by, "why": why, "node": node})


@operate.command()
@click.argument("action", type=click.Choice(["enable", "disable", "retry"]))
@click.option("--deployment", help="Of one deployment; left out: of all that are predicted.")
@_ordered
@click.pass_obj
def models(client: _Client, action: str, deployment: str | None, by: str, why: str) -> None:
    """Let predicted engines (models.aic) be asked for again, or no more, or now.

    After too many failures, or a failure at the start, sweeps are disabled until they are enabled
    here. It holds until the controller starts again.
    """
    client.post("models", {"by": by, "why": why, "action": action, "deployment": deployment})


class _Client:
    """Calls of one controller."""

    def __init__(self, url: str, token_file: Path | None) -> None:
        self._url = url.rstrip("/")
        self._token_file = token_file
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> str:
        """The answer's text."""
        return self._call(urllib.request.Request(self._url + path))

    def post(self, command: str, body: dict[str, Any]) -> None:
        """Give an order and print what was done."""
        given = {name: value for name, value in body.items() if value is not None}
        request = urllib.request.Request(
            f"{self._url}/{command}", data=json.dumps(given).encode(), method="POST"
        )
        click.echo(json.loads(self._call(request))["done"])

    def _call(self, request: urllib.request.Request) -> str:
        if self._token_file is not None:
            token = self._token_file.read_text(encoding="utf-8").strip()
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with self._opener.open(request, timeout=_LIMIT_S) as answer:
                content: bytes = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(2000).decode("utf-8", "replace").strip()
            if error.code == 401:
                said += " with --token-file or WATTLINE_TOKEN_FILE"
            raise WattlineError(f"{self._url} answers {error.code}: {said}") from None
        except (urllib.error.URLError, TimeoutError, ValueError) as error:
            why = getattr(error, "reason", error)
            raise WattlineError(f"{self._url}: {why}: is the controller running there?") from None
        return content.decode("utf-8")
