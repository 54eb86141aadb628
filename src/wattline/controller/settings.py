"""What a controller's file may say; docs/reference/controller.md is rendered from it.

Every key has its unit in its name and its meaning in the docstring below it. Deployments, pools and
engines are described as in scenarios.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, model_validator

from wattline.catalog.fleet_spec import DeploymentSpec, Name, PoolSpec
from wattline.catalog.yaml_files import StrictModel, parse
from wattline.controller.calibration_spec import CalibrationSpec
from wattline.controller.models_settings import ModelsSpec
from wattline.controller.outside_settings import AnnotationsSpec, PrometheusSpec
from wattline.controller.setting_types import Day, PathText, Seconds, TimeOfDay, Url, Uuid, Watts
from wattline.core.errors import InputError


class NodeSpec(StrictModel):
    """One GPU node, its agent, and which of its GPUs belong to which pool."""

    name: Name
    """The node's name, as its agent has it."""
    grants: PathText | None = None
    """File that its agent reads its grants from; a path that ends in `/`: a folder, in which it is
    the node's name with `.json`. Needed with `caps: grants`."""
    report_file: PathText | None = None
    """Where its agent's `report.json` is. Exactly one of this and `report_url`; none for a node
    with a foreign agent (`caps: annotations`)."""
    report_url: Url | None = None
    """Where its agent answers `/report`, for example `http://node-1:9477/report`."""
    token_file: PathText | None = None
    """File with the bearer token for `report_url`."""
    gpus: dict[Name, list[Uuid]]
    """GPU UUIDs per pool. A pool has as many over all nodes as its `gpus` says."""

    @property
    def grants_path(self) -> Path:
        """The file itself."""
        assert self.grants is not None
        path = Path(self.grants)
        return path / f"{self.name}.json" if self.grants.endswith("/") else path

    @property
    def reports(self) -> bool:
        """Whether an agent of ours tells of it."""
        return self.report_file is not None or self.report_url is not None

    @model_validator(mode="after")
    def _one_report(self) -> Self:
        if self.report_file is not None and self.report_url is not None:
            raise ValueError("give exactly one of report_file, report_url")
        return self


class BudgetWindow(StrictModel):
    """A time of the week with a budget of its own; the first window that matches counts."""

    days: list[Day] = Field(
        default=["mon", "tue", "wed", "thu", "fri", "sat", "sun"], min_length=1, max_length=7
    )
    """Days on which it begins."""
    start: TimeOfDay
    """Local time at which it begins, `HH:MM`."""
    end: TimeOfDay
    """Local time at which it ends; not after `start`: on the next day."""
    total_w: Watts
    """Budget while it lasts, watts."""


class BudgetSpec(StrictModel):
    """Watts that the fleet may book."""

    total_w: Watts
    """Budget outside all windows, watts."""
    guard_percent: float = Field(default=2.0, ge=0.0, le=50.0)
    """Percent of the budget that is kept free, because a limit is not an instantaneous ceiling."""
    rise_w_per_s: Watts | None = None
    """How fast booked watts may grow (UPS, generator); left out: no limit."""
    timezone: str = "UTC"
    """Time zone of the windows, as `Europe/Berlin`."""
    schedule: list[BudgetWindow] = Field(default=[], max_length=100)
    """Windows with another budget."""

    @model_validator(mode="after")
    def _zone_exists(self) -> Self:
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"timezone {self.timezone!r} is not known: as Europe/Berlin") from None
        return self


class SourcesSpec(StrictModel):
    """Where demand and load are seen."""

    frontends: dict[Name, list[Url]] = Field(default={})
    """Per deployment: addresses of its Dynamo frontends, without a path."""
    workers: dict[Name, list[Url]] = Field(default={})
    """Per pool: addresses of its workers' metrics pages. Workers of the supervisor need none."""
    model_names: dict[Name, str] = Field(default={})
    """Per deployment: the model's name at the frontends, where it differs from the deployment's."""
    call_s: Seconds = 0.8
    """Time limit of each call to another process."""
    silent_after_s: Seconds = 5.0
    """A node whose newest report is older counts as silent: its limits are not known."""
    prometheus: PrometheusSpec | None = None
    """History, draw of GPUs whose agent has no meter, and demand where no frontend can be read."""


class WorkerCommand(StrictModel):
    """How the supervisor starts one replica of a pool."""

    argv: list[str] = Field(min_length=1, max_length=100)
    """Program and arguments; `{gpus}`, `{replica}`, `{metrics_port}`, `{system_port}` are filled
    in."""
    env: dict[str, str] = Field(default={})
    """Environment variables to add; filled in likewise."""
    start_limit_s: Seconds = 300.0
    """A worker that is not ready after so long is ended."""
    drain_limit_s: Seconds = 180.0
    """One that was asked to end is killed after so long."""
    virtual_node: PathText | None = None
    """Folder of the virtual node that the pool's GPUs are on: those of a worker that died are set
    to idle, as hardware does by itself."""


class ActuationSpec(StrictModel):
    """What the controller may do."""

    advisory: bool = False
    """Decide, record and export, but write nothing anywhere and start nothing."""
    caps: Literal["grants", "annotations", "none"] = "grants"
    """`grants`: to Wattline's agents. `annotations`: on pods, for a foreign agent, unproven."""
    replicas: Literal["none", "supervisor"] = "none"
    """`supervisor`: start and drain local workers; `none`: all replicas of a pool always run."""
    admission: Literal["off", "inherit", "autoset"] = "off"
    """Busy thresholds of the frontends. `inherit`: computed and exported; `autoset`: also sent."""
    lease_s: Seconds = 60.0
    """How long a node may act on a grant that is not renewed."""
    expiry_w: Watts | None = None
    """Where a GPU goes when its lease ends; left out: it stays where it is."""
    brake_w: Watts | None = None
    """Where a brake takes a GPU; left out: its lowest limit."""
    workers: dict[Name, WorkerCommand] = Field(default={})
    """Per pool: the supervisor's command."""
    plugin_state: dict[Name, PathText] = Field(default={})
    """Per deployment: file that `wattline dynamo-plugin` reads; its pools have one role each."""
    annotations: AnnotationsSpec | None = None
    """Where to write caps with `caps: annotations`."""


class RecorderSpec(StrictModel):
    """The flight recorder: `wattline explain` and `wattline replay` read its folder."""

    folder: PathText | None = None
    """Folder of the segments; left out: `recording` in `state_dir`."""
    segment_mib: float = Field(default=8.0, ge=0.0625, le=1024.0)
    """Size of a segment, MiB."""
    total_mib: float = Field(default=256.0, ge=0.125, le=1_048_576.0)
    """Size of all segments, MiB; the oldest are deleted."""
    retry_s: Seconds = 10.0
    """Pause after a write that failed."""

    @model_validator(mode="after")
    def _two_fit(self) -> Self:
        if 2.0 * self.segment_mib > self.total_mib:
            raise ValueError("total_mib must hold two segments")
        return self


class ExpectedMix(StrictModel):
    """The mean request of a deployment before any was seen."""

    input_tokens: float = Field(gt=0.0, le=1e7)
    """Prompt tokens."""
    output_tokens: float = Field(gt=0.0, le=1e7)
    """Answer tokens."""


class DecisionSpec(StrictModel):
    """How to decide; docs/concepts/decision.md explains each."""

    objective: Literal["throughput", "energy"] = "throughput"
    """`throughput`: most requests within their targets; `energy`: fewest joules that meet them."""
    headroom: float = Field(default=1.1, ge=1.0, lt=100.0)
    """Capacity to provide over the demand."""
    cap_step_w: float = Field(default=10.0, gt=0.0, le=1000.0)
    """Distance of neighbouring power limits."""
    rate_window_s: Seconds = 10.0
    """Time over which counts fade for the rate in a burst."""
    mix_window_s: Seconds = 60.0
    """Most seconds over which the mean request is taken."""
    stale_s: Seconds = 10.0
    """Metrics older than this are an outage."""
    drain_s: Seconds = 10.0
    """Time in which a backlog is to be worked off."""
    forecast: Literal["last_value", "seasonal_holt"] = "seasonal_holt"
    """Forecast that raises the floor of replicas."""
    season_s: float = Field(default=0.0, ge=0.0, le=1e6)
    """Length of a season; 0: none."""
    replica_interval_s: float = Field(default=30.0, ge=0.0, le=86_400.0)
    """Between two plans of replicas."""
    replica_down_s: float = Field(default=300.0, ge=0.0, le=86_400.0)
    """Replicas fall only to the largest number wanted within this time."""
    replica_hold_s: float = Field(default=30.0, ge=0.0, le=86_400.0)
    """Least time between two changes of a pool's replicas."""
    cap_hold_s: float = Field(default=30.0, ge=0.0, le=86_400.0)
    """Least time between two changes of a pool's cap that are not urgent."""
    repair_s: float = Field(default=5.0, ge=0.0, le=86_400.0)
    """How often limits that differ from their grants are granted anew."""
    expected: dict[Name, ExpectedMix] = Field(default={})
    """Per deployment: the mean request before any was seen."""


class ControllerSettings(StrictModel):
    """The whole file."""

    state_dir: PathText
    """Folder of the controller's own: grant log, orders, budget, audit, recording."""
    listen: str = "127.0.0.1:9480"
    """`HOST:PORT` of the HTTP interface; port 0 takes a free one. Other than loopback needs
    `token_file`."""
    token_file: PathText | None = None
    """File with the bearer token; without it, changes over HTTP are refused."""
    tick_s: float = Field(default=1.0, ge=0.05, le=60.0)
    """Time between two decisions."""
    deployments: list[DeploymentSpec] = Field(min_length=1, max_length=100)
    """What is served, and by which GPUs."""
    nodes: list[NodeSpec] = Field(min_length=1, max_length=10_000)
    """The GPU nodes."""
    budget: BudgetSpec
    """Watts."""
    sources: SourcesSpec = SourcesSpec()
    """Demand and load."""
    actuation: ActuationSpec = ActuationSpec()
    """What may be done."""
    decision: DecisionSpec = DecisionSpec()
    """How to decide."""
    calibration: CalibrationSpec = CalibrationSpec()
    """Models against what is seen."""
    models: ModelsSpec = ModelsSpec()
    """Engines that are predicted."""
    recorder: RecorderSpec = RecorderSpec()
    """The flight recorder."""

    @property
    def pools(self) -> list[PoolSpec]:
        """Pools of all deployments, in order."""
        return [pool for deployment in self.deployments for pool in deployment.pools]

    @property
    def recording_folder(self) -> Path:
        """Where the segments go."""
        given = self.recorder.folder
        return Path(self.state_dir) / "recording" if given is None else Path(given)

    @model_validator(mode="after")
    def _parts_meet(self) -> Self:
        deployments = [deployment.name for deployment in self.deployments]
        pools = [pool.name for pool in self.pools]
        _once("deployment", deployments)
        _once("pool", pools)
        _once("node", [node.name for node in self.nodes])
        _once("GPU", [gpu for node in self.nodes for gpus in node.gpus.values() for gpu in gpus])
        _among("sources.frontends", self.sources.frontends, deployments)
        _among("sources.model_names", self.sources.model_names, deployments)
        if self.sources.prometheus is not None:
            namespaces = self.sources.prometheus.namespaces
            _among("sources.prometheus.namespaces", namespaces, deployments)
        _among("decision.expected", self.decision.expected, deployments)
        _among("sources.workers", self.sources.workers, pools)
        _among("actuation.workers", self.actuation.workers, pools)
        _among("actuation.plugin_state", self.actuation.plugin_state, deployments)
        for deployment in self.deployments:
            if deployment.name in self.actuation.plugin_state:
                _once(f"{deployment.name}: role", [pool.role for pool in deployment.pools])
        if self.models.aic is not None:
            chosen = self.models.aic.deployments
            _once("models.aic.deployments:", chosen)
            _among("models.aic.deployments", dict.fromkeys(chosen), deployments)
            _among("models.aic.model_names", self.models.aic.model_names, deployments)
        for node in self.nodes:
            _among(f"node {node.name}, gpus", node.gpus, pools)
        for pool in self.pools:
            found = sum(len(node.gpus.get(pool.name, [])) for node in self.nodes)
            if found != pool.gpus:
                raise ValueError(f"pool {pool.name} has {pool.gpus} gpus, the nodes name {found}")
        if self.actuation.replicas == "supervisor":
            missing = [name for name in pools if name not in self.actuation.workers]
            if missing:
                raise ValueError(f"actuation.workers.{missing[0]} is needed for the supervisor")
        self._caps_have_outlets(pools)
        host, _ = address_of(self.listen)
        if self.token_file is None and not is_loopback(host):
            raise ValueError("listen other than loopback needs token_file")
        return self

    def _caps_have_outlets(self, pools: list[str]) -> None:
        caps, annotations = self.actuation.caps, self.actuation.annotations
        for node in self.nodes:
            if caps == "grants" and node.grants is None:
                raise ValueError(f"node {node.name}: grants is needed with caps: grants")
            if caps != "annotations" and not node.reports:
                raise ValueError(f"node {node.name}: give exactly one of report_file, report_url")
        if (caps == "annotations") != (annotations is not None):
            raise ValueError("caps: annotations and actuation.annotations go together")
        if annotations is not None:
            _among("actuation.annotations.pods", annotations.pods, pools)
            missing = [name for name in pools if name not in annotations.pods]
            if missing:
                raise ValueError(f"actuation.annotations.pods.{missing[0]} is needed")
            if self.actuation.replicas != "none":
                raise ValueError("caps: annotations goes with replicas: none only")


def _once(kind: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{kind} {name} is there twice")
        seen.add(name)


def _among(where: str, found: dict[str, Any], known: list[str]) -> None:
    for name in found:
        if name not in known:
            raise ValueError(f"{where}: {name} is not one of {', '.join(known)}")


def address_of(listen: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[HOST]:PORT`; ValueError for what is neither."""
    host, colon, port = listen.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    good = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535
    if not (colon and host and good):
        raise ValueError(f"listen {listen!r} is not HOST:PORT")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_settings(path: Path) -> ControllerSettings:
    """The settings in a YAML file; InputError says file, line, field, value and remedy."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "give a readable file") from None
    return parse(ControllerSettings, content, str(path))


CHANGEABLE = (
    "budget",
    "decision",
    "calibration",
    "recorder",
    "actuation.admission",
    "actuation.lease_s",
    "actuation.expiry_w",
    "actuation.brake_w",
)
"""Keys that a reload may change; everything below them too."""


def changed_keys(old: ControllerSettings, new: ControllerSettings) -> list[str]:
    """Dotted names of what differs, as deep as the two have the same keys."""
    return _changed(old.model_dump(mode="json"), new.model_dump(mode="json"), "")


def _changed(old: object, new: object, name: str) -> list[str]:
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        prefix = f"{name}." if name else ""
        return [key for k in old for key in _changed(old[k], new[k], f"{prefix}{k}")]
    return [name]


def fixed_keys(changed: list[str]) -> list[str]:
    """Of the changed keys those that need a restart."""
    return [
        key
        for key in changed
        if not any(key == free or key.startswith(f"{free}.") for free in CHANGEABLE)
    ]
