"""What a controller is made of, and what its parts complain of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from wattline.controller.admission import AdmissionDesk
from wattline.controller.budget import BudgetDesk
from wattline.controller.caps import Caps, CapsView
from wattline.controller.gather import Gatherer
from wattline.controller.history import HistoryDesk
from wattline.controller.models import ModelDesk
from wattline.controller.nodes import ForeignNode, NodeWatch
from wattline.controller.operator import OrderBook
from wattline.controller.plugin_plan import PluginFiles
from wattline.controller.site import Site
from wattline.controller.sources import DemandSource, LoadSource, NodeSource, Replicas
from wattline.controller.view import NodeView
from wattline.recording.codec import Header
from wattline.recording.segments import FlightRecorder, RecorderStatus


@dataclass(slots=True, kw_only=True)
class Parts:
    """What a controller is made of. demand: per deployment; loads: per pool; None: no source.

    header: what a segment of the recording begins with. history: Prometheus, if there is one.
    """

    site: Site
    advisory: bool
    watches: Sequence[NodeWatch]
    reports: Sequence[NodeSource]
    demand: Sequence[DemandSource | None]
    loads: Sequence[LoadSource | None]
    worker_urls: Mapping[str, Sequence[str]]
    replicas: Replicas
    caps: Caps
    admission: AdmissionDesk
    plugin: PluginFiles
    budget: BudgetDesk
    orders: OrderBook
    recorder: FlightRecorder
    gatherer: Gatherer
    models: ModelDesk
    header: Callable[[Site], Header]
    history: HistoryDesk | None = None


def node_views(parts: Parts, now_s: float) -> tuple[NodeView, ...]:
    """The nodes as they were heard last."""
    return tuple(
        NodeView(
            name=watch.name,
            age_s=watch.age_s(now_s),
            why=watch.silent(now_s),
            mode=None if watch.report is None else watch.report.mode,
            braked=watch.report is not None and watch.report.braked,
        )
        for watch in parts.watches
    )


def problems_of(
    parts: Parts, nodes: Sequence[NodeView], caps: CapsView, recorder: RecorderStatus
) -> tuple[str, ...]:
    """What needs a person."""
    ours = [not isinstance(source, ForeignNode) for source in parts.reports]
    return (
        *(
            node.why
            for node, known in zip(nodes, ours, strict=True)
            if known and node.why is not None
        ),
        *(
            f"node {node.name}: its agent runs in mode {node.mode}: it takes no grants"
            for node in nodes
            if node.mode not in (None, "grants") and caps.epoch is not None
        ),
        *caps.problems,
        *parts.admission.problems,
        *parts.plugin.problems,
        *parts.models.view.problems,
        *([] if recorder.why is None else [f"recording: {recorder.why}"]),
    )
