"""Caps as pod annotations, for clusters whose power agent is not ours.

The API server is asked in a thread of its own, and no tick waits for it. What is booked stands on
what is known, which is less than with grants: an annotation read back is what was asked, and not
what a GPU obeys. A GPU is booked at the larger of the limit that somebody reports (our agent in
its annotation mode, or DCGM through Prometheus) and of every annotation that its pods had while
that report may be from; without a report at its largest limit, unless the operator has said after
how long an annotation counts (`trust_s`). Every pod of a pool gets the same limit, the least that
the decision wants for any of its GPUs, because which pod holds which GPU is not known.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import floor
from pathlib import Path
from typing import Protocol

from wattline.controller.caps import CapsView, enforced_w
from wattline.controller.gather import Failure, SlowCall
from wattline.controller.history import MeterReading
from wattline.controller.nodes import NodeWatch
from wattline.controller.outside_settings import AnnotationsSpec
from wattline.controller.settings import ActuationSpec
from wattline.controller.site import Site
from wattline.core.decision import CapSteps
from wattline.core.errors import InputError
from wattline.core.snapshot import Budget
from wattline.drivers.grant_files import NodeReport
from wattline.drivers.kube.annotations import Look, PodAnnotations, Synced, members_of
from wattline.drivers.kube.api import KubeError, KubeFault, connect
from wattline.drivers.pods import SourceError

log = logging.getLogger(__name__)

REPORT_LAG_S = 60.0
"""A report may be from before the annotation that is read now: Dynamo's agent looks every 15 s, its
DCGM exporter every 30 s, Prometheus every 15 s (NVIDIA Dynamo 1.6.1, DCGM exporter 4.5)."""
_LONGEST_PAUSE_S = 300.0
_NO_FREE_WATTS = "no_free_watts"


class Writer(Protocol):
    """Who reads and writes the annotations; calls may take long."""

    def look(self) -> Look:
        """Pods, and whether somebody else decides on their annotation."""

    def sync(self, watts: Mapping[str, int]) -> Synced:
        """Bring the pods of these pools there."""

    def close(self) -> None:
        """Close all connections."""


def open_writer(spec: AnnotationsSpec, site: Site) -> PodAnnotations:
    """The writer as the settings have it; InputError without credentials."""
    pods = {name: (pod.graph_deployment, pod.component) for name, pod in spec.pods.items()}
    members = members_of(pods, [pool.name for pool in site.fleet.pools])
    kubeconfig = None if spec.kubeconfig is None else Path(spec.kubeconfig)
    return PodAnnotations(connect(kubeconfig), spec.namespace, members)


@dataclass(slots=True)
class _Pool:
    """One pool. gpus: indexes. aim_w: what its pods are to have, None: nothing was ever wanted.

    held: how many of its GPUs have pods. seen: (when, watts) of what its pods had, newest last, one
    entry per change; watts None: a pod without a limit, or nothing known.
    """

    name: str
    gpus: tuple[int, ...]
    largest_w: float
    wanted: dict[int, float] = field(default_factory=dict)
    aim_w: int | None = None
    held: int = 0
    seen: list[tuple[float, float | None]] = field(default_factory=list)

    def note(self, now_s: float, watts: float | None, keep_s: float) -> None:
        """What its pods have now; what was before is kept for `keep_s`."""
        if not self.seen or self.seen[-1][1] != watts:
            self.seen.append((now_s, watts))
        while len(self.seen) > 1 and self.seen[1][0] <= now_s - keep_s:
            self.seen.pop(0)

    def most_w(self, now_s: float, within_s: float) -> float | None:
        """The largest that its pods had within that time; None: a pod may have had no limit."""
        since_s = now_s - within_s
        if not self.seen or self.seen[0][0] > since_s:
            return None
        ends = [at_s for at_s, _ in self.seen[1:]] + [now_s + 1.0]
        values = [
            watts for (_, watts), end_s in zip(self.seen, ends, strict=True) if end_s > since_s
        ]
        return None if None in values else max(watts for watts in values if watts is not None)


class AnnotationCaps:
    """Caps through annotations. `limits`: limits in force per GPU that Prometheus tells.

    InputError at the start where Dynamo's own power awareness is on, or where permissions are
    missing. An API server that does not answer is waited for: nothing is written meanwhile.
    """

    def __init__(
        self,
        site: Site,
        *,
        spec: AnnotationsSpec,
        writer: Writer,
        budget: Budget,
        now_s: float,
        limits: Callable[[float], Mapping[str, MeterReading]] = lambda now_s: {},
    ) -> None:
        self._site = site
        self._spec = spec
        self._writer = writer
        self._limits = limits
        self._budget = budget
        self._call = SlowCall("annotations")
        self._asked_s = now_s
        self._released: set[str] = set()
        self._trouble: str | None = None
        self._objections: tuple[str, ...] = ()
        self._failures: tuple[str, ...] = ()
        self._sent: dict[str, int] = {}
        self._pause_s = spec.interval_s
        self._keep_s = max(REPORT_LAG_S, spec.trust_s or 0.0)
        self._booked = tuple(site.product(gpu).max_limit_w for gpu in range(len(site.uuid)))
        self._pools = [
            _Pool(
                name=pool.name,
                gpus=tuple(gpu for gpu, owner in enumerate(site.pool) if owner == index),
                largest_w=site.fleet.product_of(pool).max_limit_w,
            )
            for index, pool in enumerate(site.fleet.pools)
        ]
        self._first_look(now_s)

    def _first_look(self, now_s: float) -> None:
        where = "actuation.caps: annotations"
        try:
            look = self._writer.look()
        except SourceError as error:
            if isinstance(error, KubeError) and error.fault is KubeFault.REFUSED:
                self._writer.close()
                raise InputError(where, "no permission", str(error)) from None
            self._trouble = str(error)
            return
        if look.objections:
            self._writer.close()
            raise InputError(
                where,
                "; ".join(look.objections),
                "Dynamo decides on these annotations itself: use caps: none, and its own budget",
            )
        self._take_look(look, now_s)

    # Seeing

    def hear(self, report: NodeReport, now_s: float) -> None:
        """Nothing to keep: the view asks the nodes."""

    def view(self, nodes: Sequence[NodeWatch], now_s: float) -> CapsView:
        """The columns as they stand; takes in what the API server has said since."""
        self._poll(now_s)
        known, assumed = self._known(nodes, now_s)
        self._booked = booked = self._columns(known, now_s)
        total_w = sum(booked)
        exposure_w = max(0.0, round(total_w - self._budget.usable_w, 3))
        unknown = sum(watts is None for watts in known)
        exposures = [f"limit not known: {unknown} GPUs at their largest"] if unknown else []
        notes = (
            [f"limits of {assumed} GPUs are assumed from annotations: nothing proves them"]
            if assumed
            else []
        )
        return CapsView(
            # What may be in force. Were it what is asked, the plan would take a minute of not
            # knowing for limits that do not follow, and count their watts as lost.
            granted_w=booked,
            booked_w=booked,
            clock=(1.0,) * len(booked),
            problems=self._problems(),
            exposure_w=exposure_w,
            exposures=tuple(exposures) if exposure_w else (),
            enforced_w=tuple(known),
            notes=tuple(notes),
        )

    def _problems(self) -> tuple[str, ...]:
        found = [f"annotations: {line}" for line in (*self._objections, *self._failures)]
        if self._trouble is not None:
            found.append(f"annotations: {self._trouble}")
        return tuple(found)

    def _known(self, nodes: Sequence[NodeWatch], now_s: float) -> tuple[list[float | None], int]:
        """Limits in force as far as anybody says; and how many only stand on an annotation."""
        told = self._limits(now_s)
        known: list[float | None] = [None] * len(self._site.uuid)
        assumed = 0
        for pool in self._pools:
            trusted_w = None
            if self._spec.trust_s is not None:
                trusted_w = pool.most_w(now_s, self._spec.trust_s)
            for place, gpu in enumerate(pool.gpus):
                uuid = self._site.uuid[gpu]
                watts = enforced_w(nodes[self._site.node[gpu]], uuid, now_s)
                if watts is None and uuid in told:
                    watts = told[uuid].watts
                if watts is None and trusted_w is not None and place < pool.held:
                    watts = trusted_w
                    assumed += 1
                known[gpu] = watts
        return known, assumed

    def _columns(self, known: Sequence[float | None], now_s: float) -> tuple[float, ...]:
        """Booked per GPU."""
        booked = [0.0] * len(known)
        for pool in self._pools:
            recent_w = pool.most_w(now_s, REPORT_LAG_S)
            for gpu in pool.gpus:
                limit_w = known[gpu]
                if self._site.uuid[gpu] in self._released:
                    watts = 0.0
                elif limit_w is None:
                    watts = pool.largest_w
                elif pool.aim_w is None:
                    watts = limit_w
                else:
                    # The report may be from when a pod had another limit, or none.
                    recent = pool.largest_w if recent_w is None else recent_w
                    watts = max(limit_w, pool.aim_w, recent)
                booked[gpu] = min(watts, pool.largest_w)
        return tuple(booked)

    @property
    def idle(self) -> bool:
        """Whether no round is under way."""
        return self._call.waiting_s is None or self._call.end(0.0)

    # Talking to the API server

    def _poll(self, now_s: float) -> None:
        outcome = self._call.take()
        if isinstance(outcome, Synced):
            self._take_look(outcome.look, now_s)
            self._failures = outcome.failures
            # What a policy refuses, it refuses again: no war about it.
            again_s = 2.0 * self._pause_s if outcome.failures else self._spec.interval_s
            self._pause_s = min(again_s, max(_LONGEST_PAUSE_S, self._spec.interval_s))
            if outcome.written:
                log.info("annotations written", extra={"pods": outcome.written})
        elif isinstance(outcome, Failure):
            self._fail(outcome.why)
        self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        """Ask again when it is time, and at once when there is something new to write."""
        aims = {pool.name: pool.aim_w for pool in self._pools if pool.aim_w is not None}
        due = aims != self._sent or now_s - self._asked_s >= self._pause_s
        if not due or not self._call.begin(partial(self._writer.sync, aims)):
            return
        self._asked_s, self._sent = now_s, aims
        for pool in self._pools:
            before = pool.seen[-1][1] if pool.seen else None
            if pool.aim_w is not None and before is not None:
                # From now on it may be in force, whether or not an answer comes.
                pool.note(now_s, max(before, float(pool.aim_w)), self._keep_s)

    def _take_look(self, look: Look, now_s: float) -> None:
        self._trouble = None
        if look.objections and look.objections != self._objections:
            log.error("nothing is written", extra={"why": "; ".join(look.objections)})
        self._objections = look.objections
        for pool in self._pools:
            pods = look.pods.get(pool.name, ())
            limits = [pod.watts for pod in pods]
            pool.held = sum(pod.gpus for pod in pods)
            known = [float(watts) for watts in limits if watts is not None]
            most_w = max(known) if known and len(known) == len(limits) else None
            pool.note(now_s, most_w, self._keep_s)

    def _fail(self, why: str) -> None:
        if self._trouble is None:
            log.warning("the API server does not answer", extra={"why": why})
        self._trouble = why

    # Changing

    def set_budget(self, budget: Budget, now_s: float) -> None:
        """From now on this is what may be booked."""
        self._budget = budget

    def set_terms(self, spec: ActuationSpec) -> None:
        """Annotations carry no terms: they stand until they are changed."""

    def release(self, node: str, by: str, why: str, now_s: float) -> None:
        """Book nothing for the node's GPUs."""
        self._released.update(self._site.gpus_of(node))

    @property
    def gives_back(self) -> bool:
        """No: what a GPU's original limit is, its own agent knows."""
        return False

    def give_back(self, gpus: Sequence[str]) -> None:
        """Nothing to give back."""

    def act(self, caps: CapSteps, now_s: float) -> Mapping[str, int]:
        """Take over what is wanted; lowerings at once, raises as far as watts are free."""
        refused: Counter[str] = Counter()
        for gpu, cap_w in zip(caps.gpu, caps.cap_w, strict=True):
            self._pools[self._site.pool[gpu]].wanted[gpu] = cap_w
        raises = []
        for pool in self._pools:
            if not pool.wanted:
                continue
            aim_w = floor(min(pool.wanted.values()) + 1e-6)
            if pool.aim_w is None or aim_w <= pool.aim_w:
                pool.aim_w = aim_w
            else:
                raises.append((pool, aim_w))
        for pool, aim_w in raises:
            if self._fits(pool, aim_w, now_s):
                pool.aim_w = aim_w
            else:
                refused[_NO_FREE_WATTS] += len(pool.gpus)
        self._begin(now_s)
        return refused

    def _fits(self, pool: _Pool, aim_w: int, now_s: float) -> bool:
        """Whether everything fits with the pool's GPUs booked at `aim_w` or what they are now."""
        booked = list(self._booked)
        for gpu in pool.gpus:
            if self._site.uuid[gpu] not in self._released:
                booked[gpu] = max(booked[gpu], float(aim_w))
        return sum(booked) <= self._budget.usable_w

    def close(self) -> None:
        """Let go; annotations stay as they are."""
        if self._call.end(REPORT_LAG_S):
            self._writer.close()
