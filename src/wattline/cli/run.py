"""`wattline run`: the live controller."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wattline.cli.signals import on_signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from wattline.controller.assemble import Assembly
    from wattline.controller.settings import ControllerSettings, WorkerCommand
    from wattline.live.supervisor import Supervisor, WorkerPool

log = logging.getLogger(__name__)


@click.command(
    epilog="""\b
Examples:
  wattline run --config controller.yaml --check-config
  wattline run --config controller.yaml --advisory
  wattline operate status
"""
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Settings in YAML: docs/reference/controller.md.",
)
@click.option("--check-config", is_flag=True, help="Say whether FILE can be used; start nothing.")
@click.option("--advisory", is_flag=True, help="Decide and record; write nothing anywhere.")
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", help="Of standard error."
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info"
)
def run(config: Path, check_config: bool, advisory: bool, log_format: str, log_level: str) -> None:
    """Keep a live fleet inside its budget: see, decide, record and act, once a second.

    SIGHUP reads FILE again, SIGTERM ends it: limits stay as they are. Exit code 1: another
    controller has taken over, or the grant log cannot be used.
    """
    from wattline.controller.models import check_models
    from wattline.controller.settings import read_settings
    from wattline.controller.site import build_site

    config = config.absolute()
    settings = read_settings(config)
    if check_config:
        site = build_site(settings, config)
        check_models(site.settings, settings, config)
        _worker_pools(settings)
        click.echo(
            f"{config}: ok: {len(site.nodes)} nodes, {len(site.uuid)} GPUs, "
            f"{len(site.fleet.pools)} pools, {settings.budget.total_w:,.0f} W"
        )
        return
    from wattline.agent.logs import configure

    configure(log_format, log_level)
    _run(settings, config, advisory or settings.actuation.advisory)


def _run(settings: ControllerSettings, config: Path, advisory: bool) -> None:
    from wattline.controller.assemble import assemble
    from wattline.controller.replicas import SupervisedReplicas

    supervisor = None
    if settings.actuation.replicas == "supervisor" and not advisory:
        supervisor = _supervisor(settings)
    try:
        replicas = None if supervisor is None else SupervisedReplicas(supervisor)
        assembly = assemble(settings, config, advisory=advisory, replicas=replicas)
        try:
            _serve(assembly)
        finally:
            assembly.controller.close()
    finally:
        if supervisor is not None:
            # Workers go on serving: the next controller finds them again.
            supervisor.abandon()


def _serve(assembly: Assembly) -> None:
    from wattline.controller.http import Face, HttpServer
    from wattline.controller.metrics import exposition

    controller, settings = assembly.controller, assembly.settings
    fleet = controller.parts.site.fleet
    face = Face(
        view=lambda: controller.view,
        metrics=exposition(lambda: controller.view, fleet),
        command=assembly.desk,
        fleet=fleet,
        stale_s=max(10.0, 5.0 * settings.tick_s),
    )
    token_file = None if settings.token_file is None else Path(settings.token_file)
    server = HttpServer(face, listen=settings.listen, token_file=token_file)
    log.info("listening", extra={"address": server.address})
    hangup = threading.Event()

    def again() -> None:
        hangup.set()
        controller.wake()

    def between() -> None:
        if hangup.is_set():
            hangup.clear()
            assembly.reload()

    on_signals((signal.SIGTERM, signal.SIGINT), controller.stop)
    on_signals((signal.SIGHUP,), again)
    try:
        controller.run(settings.tick_s, between)
    finally:
        server.close()


def _supervisor(settings: ControllerSettings) -> Supervisor:
    from wattline.live.supervisor import Supervisor

    return Supervisor(_worker_pools(settings), Path(settings.state_dir) / "workers")


def _worker_pools(settings: ControllerSettings) -> list[WorkerPool]:
    """What the supervisor may start; InputError for a virtual node that is not there."""
    from wattline.live.supervisor import WorkerPool

    return [
        WorkerPool(
            name=name,
            argv=tuple(command.argv),
            env=command.env,
            start_limit_s=command.start_limit_s,
            drain_limit_s=command.drain_limit_s,
            after_death=_after_death(command),
        )
        for name, command in settings.actuation.workers.items()
    ]


def _after_death(command: WorkerCommand) -> Callable[[tuple[str, ...]], None] | None:
    if command.virtual_node is None:
        return None
    from wattline.live.worker_command import idle_gpus, state_file_of

    return idle_gpus(state_file_of(Path(command.virtual_node)))
