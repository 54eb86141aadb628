"""A controller out of its settings: what is opened at the start, and what a reload changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic, time

from wattline.controller.admission import AdmissionDesk, Frontends
from wattline.controller.annotations import AnnotationCaps, open_writer
from wattline.controller.budget import BudgetDesk
from wattline.controller.caps import Caps, GrantedCaps, WatchedCaps, newest_epoch
from wattline.controller.commands import Desk
from wattline.controller.gather import Gatherer
from wattline.controller.history import HistoryDesk
from wattline.controller.history_batch import HistoryReader
from wattline.controller.loop import Controller
from wattline.controller.models import ModelDesk
from wattline.controller.nodes import NodeWatch, open_node
from wattline.controller.operator import Audit, OrderBook
from wattline.controller.parts import Parts
from wattline.controller.plugin_plan import PluginFiles
from wattline.controller.replicas import FixedReplicas
from wattline.controller.settings import (
    ControllerSettings,
    RecorderSpec,
    changed_keys,
    fixed_keys,
    read_settings,
)
from wattline.controller.site import Site, build_site
from wattline.controller.sources import NodeSource, Replicas
from wattline.core.errors import InputError, WattlineError
from wattline.core.state import State
from wattline.drivers.dynamo.sources import FrontendDemand, WorkerLoads
from wattline.drivers.dynamo.thresholds import BusyThresholds
from wattline.drivers.grant_files import NodeReport
from wattline.recording.codec import Header
from wattline.recording.record import Recording
from wattline.recording.segments import FlightRecorder

log = logging.getLogger(__name__)

RESUME_S = 900.0
"""A recording that ended longer ago is not gone on with: its demand is another day's."""


def anchored_clock() -> Callable[[], float]:
    """Seconds since 1970 as they were at this call, carried on by the monotonic clock.

    So that they never run backwards; a wall clock that is set is followed at the next start only.
    """
    offset_s = time() - monotonic()
    return lambda: monotonic() + offset_s


@dataclass(slots=True)
class Assembly:
    """A controller, what takes commands for it, and what may be changed while it runs."""

    path: Path
    settings: ControllerSettings
    controller: Controller
    desk: Desk
    clock: Callable[[], float]

    def reload(self) -> str:
        """Read the file anew; a line on what came of it, which the state shows too.

        Nothing is taken of a file that is invalid, or that changes what needs a restart.
        """
        try:
            line = self._reload()
        except WattlineError as error:
            log.error("the configuration is not taken", extra={"why": str(error)})
            self.controller.note_reload(f"refused: {error}", refused=True)
            return f"refused: {error}"
        log.info("configuration read again", extra={"audit": True, "what": line})
        self.controller.note_reload(line, refused=False)
        return line

    def _reload(self) -> str:
        new = read_settings(self.path)
        changed = changed_keys(self.settings, new)
        fixed = fixed_keys(changed)
        if fixed:
            raise InputError(str(self.path), ", ".join(fixed), "needs a restart; nothing is taken")
        parts = self.controller.parts
        site = build_site(new, self.path)
        site = replace(site, settings=parts.models.apply(site.settings))
        parts.header = partial(header_of, new, path=self.path)
        parts.budget.reload(new.budget)
        parts.caps.set_terms(new.actuation)
        parts.admission.mode = new.actuation.admission
        if site.settings != parts.site.settings:
            # Only then: everything that is remembered per settings object stays valid.
            parts.site = site
            parts.recorder.begin(parts.header(site))
        if new.recorder != self.settings.recorder:
            parts.recorder.close()
            parts.recorder = open_recorder(new, site, self.path)
        self.settings = new
        return f"changed: {', '.join(changed)}" if changed else "nothing changed"


def assemble(
    settings: ControllerSettings,
    path: Path,
    *,
    advisory: bool,
    replicas: Replicas | None = None,
    clock: Callable[[], float] | None = None,
) -> Assembly:
    """Build the controller. `replicas`: of a supervisor; None: all always run.

    `clock`: seconds since 1970 that never run backwards; None: see `anchored_clock`.

    InputError for what cannot be used, FencedError while another controller has the grant log.
    """
    site = build_site(settings, path)
    state_dir = Path(settings.state_dir)
    make_state_dir(state_dir)
    clock = clock or anchored_clock()
    models = ModelDesk(site.settings, settings, path)
    site = replace(site, settings=models.start(site.settings, round(clock(), 3)))
    sources = settings.sources
    gatherer = Gatherer(sources.call_s)
    reports = [open_node(node, sources.call_s) for node in settings.nodes]
    heard = first_reports(reports, gatherer)
    budget = _budget(settings, site, heard)
    audit = Audit(state_dir / "audit.jsonl")
    starts = settings.actuation.replicas == "supervisor"
    orders = OrderBook(state_dir / "orders.json", site, audit, starts=starts)
    first_tick, state = resumed(settings.recording_folder, site, clock())
    history = _history(settings, site, warm=state is None)
    with _closed_on_failure(history):
        # Before anything else is opened: it is what another controller keeps us out of.
        caps = _caps(settings, site, advisory, budget, clock, heard, history)
    demand = [_demand(settings, index) for index in range(len(settings.deployments))]
    parts = Parts(
        site=site,
        advisory=advisory,
        watches=[NodeWatch(node.name, sources.silent_after_s) for node in settings.nodes],
        reports=reports,
        demand=demand,
        loads=[_load(settings, site, index, demand) for index in range(len(site.fleet.pools))],
        worker_urls=sources.workers,
        replicas=FixedReplicas(site) if replicas is None else replicas,
        caps=caps,
        admission=_admission(settings),
        plugin=PluginFiles(
            {name: Path(path) for name, path in settings.actuation.plugin_state.items()}
        ),
        budget=budget,
        orders=orders,
        recorder=open_recorder(settings, site, path),
        gatherer=gatherer,
        models=models,
        header=partial(header_of, settings, path=path),
        history=history,
    )
    controller = Controller(parts, clock, first_tick=first_tick, state=state)
    desk = Desk(
        orders,
        budget,
        audit,
        clock,
        controller.attest_off,
        controller.originals,
        models.command,
        controller.wake,
    )
    return Assembly(path, settings, controller, desk, clock)


def _budget(settings: ControllerSettings, site: Site, heard: Sequence[NodeReport]) -> BudgetDesk:
    """The budget as it stood, with a version above every one that a node has seen."""
    lowest_w = sum(site.product(gpu).min_limit_w for gpu in range(len(site.uuid)))
    budget = BudgetDesk(settings.budget, Path(settings.state_dir) / "budget.json", lowest_w)
    seen = [report.budget_version for report in heard if report.budget_version is not None]
    budget.above(max(seen, default=0))
    return budget


def make_state_dir(path: Path) -> None:
    """Make the folder, for its owner only; WattlineError when that fails."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise WattlineError(
            f"state_dir {path}: {error.strerror or error}: give a folder of the controller's own"
        ) from None


def first_reports(sources: Sequence[NodeSource], gatherer: Gatherer) -> list[NodeReport]:
    """What the nodes say before anything is granted; a node that is silent is heard later."""
    calls = {str(index): source.read for index, source in enumerate(sources)}
    return [each for each in gatherer.gather(calls).values() if isinstance(each, NodeReport)]


@contextmanager
def _closed_on_failure(history: HistoryDesk | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if history is not None:
            history.close()
        raise


def _caps(
    settings: ControllerSettings,
    site: Site,
    advisory: bool,
    budget: BudgetDesk,
    clock: Callable[[], float],
    heard: list[NodeReport],
    history: HistoryDesk | None,
) -> Caps:
    if advisory or settings.actuation.caps == "none":
        return WatchedCaps(site)
    annotations = settings.actuation.annotations
    if annotations is not None:
        return AnnotationCaps(
            site,
            spec=annotations,
            writer=open_writer(annotations, site),
            budget=budget.now(clock()).budget,
            now_s=clock(),
            limits=(lambda now_s: {}) if history is None else history.limit,
        )
    return GrantedCaps(
        site,
        spec=settings.actuation,
        grant_files=[node.grants_path for node in settings.nodes],
        log_path=Path(settings.state_dir) / "grants.log",
        budget=budget.now(clock()).budget,
        silent_after_s=settings.sources.silent_after_s,
        seen_epoch=newest_epoch(heard),
    )


def _model_name(settings: ControllerSettings, index: int) -> str:
    deployment = settings.deployments[index]
    return settings.sources.model_names.get(deployment.name, deployment.name)


def _demand(settings: ControllerSettings, index: int) -> FrontendDemand | None:
    urls = settings.sources.frontends.get(settings.deployments[index].name, [])
    if not urls:
        return None
    # A little less than the loop waits, so that the source can still say why.
    limit_s = 0.9 * settings.sources.call_s
    return FrontendDemand(urls, _model_name(settings, index), limit_s=limit_s)


def _history(settings: ControllerSettings, site: Site, *, warm: bool) -> HistoryDesk | None:
    spec = settings.sources.prometheus
    if spec is None:
        return None
    names = [deployment.name for deployment in settings.deployments]
    reader = HistoryReader(
        spec,
        models=[_model_name(settings, index) for index in range(len(names))],
        namespaces=[spec.namespaces.get(name) for name in names],
        bin_s=site.settings.history_bin_s,
        limits=settings.actuation.caps == "annotations",
    )
    return HistoryDesk(
        reader,
        names,
        url=spec.url,
        interval_s=spec.interval_s,
        stale_s=site.settings.stale_s,
        draw_age_s=spec.draw_age_s,
        warm=warm and spec.range_s >= site.settings.history_bin_s,
    )


def _load(
    settings: ControllerSettings,
    site: Site,
    index: int,
    demand: Sequence[FrontendDemand | None],
) -> WorkerLoads:
    """A pool's workers; what they do not tell comes from their deployment's frontends."""
    limit_s = 0.9 * settings.sources.call_s
    names = [deployment.name for deployment in site.fleet.deployments]
    frontends = demand[names.index(site.fleet.pools[index].deployment)]
    if frontends is None:
        return WorkerLoads(limit_s=limit_s)
    return WorkerLoads(limit_s=limit_s, gauges=lambda: frontends.gauges)


def _admission(settings: ControllerSettings) -> AdmissionDesk:
    # A sender makes up to two rounds of calls, and must be done within one call's limit.
    limit_s = 0.45 * settings.sources.call_s
    groups = []
    for index, deployment in enumerate(settings.deployments):
        urls = tuple(settings.sources.frontends.get(deployment.name, []))
        if urls:
            frontends = Frontends(index, urls, _model_name(settings, index))
            groups.append((frontends, BusyThresholds(limit_s=limit_s)))
    return AdmissionDesk(groups, settings.actuation.admission)


def open_recorder(settings: ControllerSettings, site: Site, path: Path) -> FlightRecorder:
    """The flight recorder as the settings have it."""
    spec: RecorderSpec = settings.recorder
    return FlightRecorder(
        settings.recording_folder,
        header_of(settings, site, path),
        segment_bytes=int(spec.segment_mib * 2**20),
        total_bytes=int(spec.total_mib * 2**20),
        retry_s=spec.retry_s,
        now=monotonic,
    )


def header_of(settings: ControllerSettings, site: Site, path: Path) -> Header:
    """What a segment begins with. Environments of workers stay out: they may hold secrets."""
    return Header(
        policy="wattline",
        settings=site.settings,
        policy_context={"role_caps": {}, "pool_caps_w": None, "pool_replicas": None},
        scenario={"name": "live", "nodes": list(site.nodes)},
        run={
            "command": f"wattline run --config {path}",
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "tick_s": settings.tick_s,
        },
    )


def resumed(folder: Path, site: Site, now_s: float) -> tuple[int, State | None]:
    """Number of the next tick, and the state to go on with; (0, None) where there is none."""
    if not folder.is_dir():
        return 0, None
    try:
        last = Recording(folder).last_tick()
    except InputError as error:
        log.warning("the recording is not gone on with", extra={"why": str(error)})
        return 0, None
    if last is None:
        return 0, None
    first_tick = last.snapshot.tick + 1
    state = last.decision.next_state
    same = last.header.settings.fleet == site.fleet
    if state is None or not same or not 0.0 <= now_s - state.time_s <= RESUME_S:
        return first_tick, None
    return first_tick, state
