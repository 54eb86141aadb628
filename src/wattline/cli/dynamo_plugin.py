"""`wattline dynamo-plugin`: Dynamo's own planner, inside our budget."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from wattline.cli.signals import on_signals

_EPILOG = (
    "Example: wattline dynamo-plugin --state /run/wattline/dynamo/plan.json "
    "--listen 127.0.0.1:9095 --metrics 127.0.0.1:9096"
)


@click.command(epilog=_EPILOG)
@click.option(
    "--state", type=click.Path(path_type=Path, dir_okay=False), required=True,
    help="Plan that the controller writes.",
)  # fmt: skip
@click.option(
    "--listen", default="127.0.0.1:9095", show_default=True, metavar="HOST:PORT",
    help="Where the planner calls.",
)  # fmt: skip
@click.option(
    "--register", metavar="GATEWAY",
    help="Register at the planner's gateway: unix:///path or host:port. Without it the planner's "
    "configuration lists the plugin.",
)  # fmt: skip
@click.option(
    "--secret-file", type=click.Path(path_type=Path, dir_okay=False),
    help="Holds the secret for the gateway; read anew at each use.",
)  # fmt: skip
@click.option(
    "--endpoint", metavar="grpc://HOST:PORT",
    help="What to register, where the planner reaches --listen by another name.",
)  # fmt: skip
@click.option("--id", "plugin_id", default="wattline", show_default=True, help="Plugin id.")
@click.option("--propose", is_flag=True, help="Also propose the controller's wanted replicas.")
@click.option(
    "--stale-s", type=click.FloatRange(min=1.0), default=15.0, show_default=True,
    help="Age of the plan above which nothing grows.",
)  # fmt: skip
@click.option("--metrics", metavar="HOST:PORT", help="Where /metrics, /healthz, /readyz are.")
@click.option(
    "--planner-metrics", metavar="URL", help="The planner's metrics page, to see its breaker."
)
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info",
    show_default=True,
)  # fmt: skip
def dynamo_plugin(
    state: Path,
    listen: str,
    register: str | None,
    secret_file: Path | None,
    endpoint: str | None,
    plugin_id: str,
    propose: bool,
    stale_s: float,
    metrics: str | None,
    planner_metrics: str | None,
    log_format: str,
    log_level: str,
) -> None:
    """Answer Dynamo's planner with ceilings that keep prefill and decode in their watts.

    A CONSTRAIN plugin (and with --propose a PROPOSE plugin) of the planner's gRPC protocol. The
    planner goes on without a plugin that does not answer: the limits that node agents enforce stay
    the second line.

    Exit code 0: asked to stop. 2: settings.
    """
    from wattline.agent.logs import configure
    from wattline.live.plugin import PluginProcess, PluginSettings

    configure(log_format, log_level)
    stop = threading.Event()

    on_signals((signal.SIGTERM, signal.SIGINT), stop.set)
    process = PluginProcess(
        PluginSettings(
            state=state,
            listen=listen,
            endpoint=endpoint,
            gateway=register,
            secret_file=secret_file,
            plugin_id=plugin_id,
            proposes=propose,
            stale_s=stale_s,
            metrics=metrics,
            planner_metrics=planner_metrics,
        )
    )
    try:
        stop.wait()
    finally:
        process.close()
