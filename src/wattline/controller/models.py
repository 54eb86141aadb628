"""Engines that are predicted while the controller runs: when to ask, what becomes of answers.

At the start kept tables are taken at once; otherwise the declared engines decide until a sweep, in
a thread that waits for the library's process, was good. A drift between model and measurement, or
an operator, asks for another one. Engines change between two ticks, all of a deployment together,
and the recording goes on in a new segment whose header holds them, so that it replays. What becomes
of failures is `core.calibration.sweep`: closed at the start, open at run time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue

from wattline.catalog.fleet_spec import AnyEngine
from wattline.controller.model_alternatives import Alternative, best_alternatives
from wattline.controller.model_engines import (
    Found,
    Infeasible,
    Member,
    found_of,
    judged,
    members_of,
    requests_of,
)
from wattline.controller.models_settings import AicSpec
from wattline.controller.models_view import DeploymentModels, ModelsView
from wattline.controller.settings import ControllerSettings
from wattline.core.calibration.sweep import Reoptimiser, SweepFailed, SweepTerms, Swept
from wattline.core.errors import InputError, WattlineError
from wattline.core.fleet import Deployment
from wattline.core.mix import Mix
from wattline.core.settings import Settings
from wattline.core.state import State
from wattline.drivers.aic import Aic, Request, Table

log = logging.getLogger(__name__)

ACTIONS = ("enable", "disable", "retry")


@dataclass(slots=True, kw_only=True)
class _Entry:
    """A predicted deployment and what is remembered of its sweeps."""

    index: int
    deployment: Deployment
    members: tuple[Member, ...]
    memory: Reoptimiser[Found]
    disabled_reason: str | None = None
    clamped_prefill: int = 0
    clamped_decode: int = 0
    alternatives: tuple[Alternative, ...] = ()


Outcome = Swept[Found] | SweepFailed


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a sweep came to. drifts: the counter when it was begun."""

    entry: _Entry
    outcome: Outcome
    drifts: int
    alternatives: tuple[Alternative, ...] = ()


def check_models(settings: Settings, configured: ControllerSettings, path: Path) -> None:
    """InputError for deployments that cannot be predicted; nothing is started."""
    if configured.models.aic is not None:
        _entries(configured.models.aic, settings, configured, path)


class ModelDesk:
    """Engines of a fleet. Used from the loop; `command` and `view` from anywhere.

    predictor: None: the one that the configuration names, if it names one.
    """

    def __init__(
        self,
        settings: Settings,
        configured: ControllerSettings,
        path: Path,
        predictor: Aic | None = None,
    ) -> None:
        """InputError for deployments that cannot be predicted."""
        self._fleet = settings.fleet
        self._expected = [settings.expected_mix(i) for i in range(len(settings.fleet.deployments))]
        self._entries: list[_Entry] = []
        self._commands: SimpleQueue[tuple[str, str | None, str]] = SimpleQueue()
        self._outcomes: SimpleQueue[_Answer] = SimpleQueue()
        self._sweeping: _Entry | None = None
        self._thread: threading.Thread | None = None
        self._spec: AicSpec | None = configured.models.aic
        self._aic = predictor
        self.view = ModelsView(
            deployments=tuple(DeploymentModels(name=d.name) for d in settings.fleet.deployments)
        )
        if self._spec is not None:
            self._entries = _entries(self._spec, settings, configured, path)
            if self._aic is None:
                self._aic = _predictor(self._spec, configured)

    # From anywhere

    def command(self, action: str, deployment: str | None, by: str, why: str) -> str:
        """Take an order, carried out with the next tick; InputError for what makes no sense."""
        if not self._entries:
            raise InputError("models", action, "this controller predicts none: models.aic")
        names = [entry.deployment.name for entry in self._entries]
        if deployment is not None and deployment not in names:
            raise InputError("deployment", deployment, f"use one of {', '.join(names)}")
        if action not in ACTIONS:
            raise InputError("action", action, f"use one of {', '.join(ACTIONS)}")
        chosen = [deployment] if deployment is not None else names
        disabled = {entry.name for entry in self.view.deployments if entry.disabled_reason}
        if action == "retry" and disabled.issuperset(chosen):
            raise InputError("models", action, "sweeps are disabled: enable them")
        self._commands.put((action, deployment, f"by {by}: {why}"))
        done = {"enable": "are enabled", "disable": "are disabled", "retry": "are asked for"}
        return f"sweeps of {', '.join(chosen)} {done[action]}"

    # From the loop

    def start(self, settings: Settings, now_s: float) -> Settings:
        """Take what is kept of earlier sweeps; the settings with those engines."""
        for entry in self._entries:
            mix = self._expected[entry.index]
            try:
                tables = self._kept(entry, mix)
            except WattlineError as error:
                log.warning("kept tables are not used", extra={"why": str(error)})
                continue
            if tables is not None:
                outcome = self._outcome(entry, tables, mix)
                advice = self._advice(entry, outcome, mix, self._aic.cached if self._aic else None)
                self._take(_Answer(entry, outcome, 0, advice), None, now_s)
        self._show(now_s)
        return self.apply(settings)

    def poll(self, now_s: float, state: State | None) -> bool:
        """Take answers and orders in, and ask anew where it is due; whether engines changed."""
        before = [_engines(entry) for entry in self._entries]
        self._carry_out_commands()
        while True:
            try:
                answer = self._outcomes.get_nowait()
            except Empty:
                break
            self._sweeping = self._thread = None
            self._take(answer, state, now_s)
        if self._sweeping is None:
            due = (e for e in self._entries if e.memory.due(now_s, _drifts(e, state)))
            entry_due = next(due, None)
            if entry_due is not None:
                self._begin(entry_due, state)
        self._show(now_s)
        return before != [_engines(entry) for entry in self._entries]

    def apply(self, settings: Settings) -> Settings:
        """The settings with the engines that are predicted; the same object if there are none."""
        engines = list(settings.engines)
        for entry in self._entries:
            found = entry.memory.config
            if found is not None:
                for member, engine in zip(entry.members, found.engines, strict=True):
                    engines[member.index] = engine
        if tuple(engines) == settings.engines:
            return settings
        return replace(settings, engines=tuple(engines))

    def close(self) -> None:
        """End a sweep that runs."""
        if self._aic is not None:
            self._aic.close()
        if self._thread is not None:
            self._thread.join(5.0)

    # Sweeping

    def _begin(self, entry: _Entry, state: State | None) -> None:
        mix = self._mix(entry, state)
        self._sweeping = entry
        self._thread = threading.Thread(
            target=self._sweep, args=(entry, mix, _drifts(entry, state)), daemon=True, name="models"
        )
        log.info("models: asking", extra={"deployment": entry.deployment.name})
        self._thread.start()

    def _sweep(self, entry: _Entry, mix: Mix, drifts: int) -> None:
        """In its own thread: ask, build, judge."""
        aic, spec = self._aic, self._spec
        assert aic is not None
        assert spec is not None
        outcome: Outcome
        advice: tuple[Alternative, ...] = ()
        try:
            tables = aic.sweep(requests_of(entry.members, spec, mix))
            outcome = self._outcome(entry, tables, mix)
            advice = self._advice(entry, outcome, mix, aic.sweep)
        except WattlineError as error:
            outcome = SweepFailed(str(error))
        except Exception as error:
            # A defect here must not leave the loop waiting for an answer that never comes.
            log.exception("a sweep failed")
            outcome = SweepFailed(f"{type(error).__name__}: {error}")
        self._outcomes.put(_Answer(entry, outcome, drifts, advice))

    def _kept(self, entry: _Entry, mix: Mix) -> list[Table] | None:
        assert self._aic is not None
        assert self._spec is not None
        return self._aic.cached(requests_of(entry.members, self._spec, mix))

    def _outcome(self, entry: _Entry, tables: Sequence[Table], mix: Mix) -> Outcome:
        try:
            found = found_of(entry.members, self._fleet, tables)
            return judged(found, entry.members, entry.deployment, self._fleet, mix)
        except (WattlineError, ValueError, ArithmeticError) as error:
            return SweepFailed(f"the tables give no engine: {error}")

    def _advice(
        self,
        entry: _Entry,
        outcome: Outcome,
        mix: Mix,
        ask: Callable[[list[Request]], list[Table] | None] | None,
    ) -> tuple[Alternative, ...]:
        """Sizes that would serve more; only where today's was good."""
        if ask is None or self._spec is None or not isinstance(outcome, Swept):
            return ()
        slo = entry.deployment.slo
        return best_alternatives(
            outcome.config, entry.members, self._fleet, slo, mix, self._spec, ask
        )

    def _take(self, answer: _Answer, state: State | None, now_s: float) -> None:
        """Remember an outcome."""
        entry, outcome = answer.entry, answer.outcome
        memory = entry.memory
        ttft, itl = _factors(entry, state)
        after = memory.after(
            outcome,
            entry.deployment.slo,
            now_s,
            drifts=answer.drifts,
            ttft_factor=ttft,
            itl_factor=itl,
        )
        entry.memory = after
        if isinstance(outcome, Swept) and after is not memory:
            entry.clamped_prefill += outcome.config.prefill.clamped
            entry.clamped_decode += outcome.config.decode.clamped
            entry.alternatives = answer.alternatives
        if after.disabled is not None and memory.disabled is None:
            infeasible = isinstance(outcome, Swept | Infeasible)
            if memory.config is not None:
                entry.disabled_reason = "consecutive_failures"
            else:
                entry.disabled_reason = (
                    "infeasible_at_startup" if infeasible else "startup_exception"
                )
        name = entry.deployment.name
        if after.failures > memory.failures:
            log.error("models: no answer", extra={"deployment": name, "why": after.why})
        elif after.config != memory.config and after.config is not None:
            found = after.config
            log.info(
                "models: predicted engines are in force",
                extra={"deployment": name, "package": found.package},
            )

    def _carry_out_commands(self) -> None:
        while True:
            try:
                action, deployment, said = self._commands.get_nowait()
            except Empty:
                return
            for entry in self._entries:
                if deployment is None or deployment == entry.deployment.name:
                    _order(entry, action, said)

    def _mix(self, entry: _Entry, state: State | None) -> Mix:
        """The mean request that the plan stands on; before any was seen, the expected one."""
        demand = None if state is None else state.demand[entry.index].mix_in_force
        return self._expected[entry.index] if demand is None else Mix(*demand)

    def _show(self, now_s: float) -> None:
        shown = {entry.deployment.name: self._shown(entry, now_s) for entry in self._entries}
        self.view = ModelsView(
            deployments=tuple(shown.get(e.name, e) for e in self.view.deployments)
        )

    def _shown(self, entry: _Entry, now_s: float) -> DeploymentModels:
        memory, found = entry.memory, entry.memory.config
        sweeping = self._sweeping is entry
        state = "in force" if found is not None else "declared"
        if memory.disabled is not None:
            state = "disabled"
        elif sweeping:
            state = "sweeping"
        return DeploymentModels(
            name=entry.deployment.name,
            configured=True,
            source="declared" if found is None else "aic",
            state=state,
            why=memory.why if memory.disabled is None else memory.disabled,
            sweeping=sweeping,
            consecutive_failures=memory.failures,
            sweeps=memory.sweeps,
            exceptions=memory.failed,
            regressions=memory.regressions,
            disabled_reason=entry.disabled_reason,
            clamped_prefill=entry.clamped_prefill,
            clamped_decode=entry.clamped_decode,
            prefill_w=None if found is None else found.prefill.watts,
            decode_w=None if found is None else found.decode.watts,
            prefill_raw_w=None if found is None else found.prefill.raw_w,
            decode_raw_w=None if found is None else found.decode.raw_w,
            package=None if found is None else found.package,
            age_s=None if memory.good_s is None else round(now_s - memory.good_s, 3),
            alternatives=entry.alternatives,
        )


def _engines(entry: _Entry) -> tuple[AnyEngine, ...] | None:
    return None if entry.memory.config is None else entry.memory.config.engines


def _order(entry: _Entry, action: str, said: str) -> None:
    if action == "disable":
        entry.memory = entry.memory.disable(said)
        entry.disabled_reason = "operator"
    elif action == "enable":
        entry.memory = entry.memory.enable()
        entry.disabled_reason = None
    elif entry.memory.disabled is None:
        # As if the newest drift had not been answered, and nothing had just failed.
        entry.memory = replace(entry.memory, answered=-1, tried_s=None)


def _entries(
    spec: AicSpec, settings: Settings, configured: ControllerSettings, path: Path
) -> list[_Entry]:
    fleet = settings.fleet
    terms = SweepTerms(
        most_failures=spec.max_failures, regression=spec.regression, retry_s=spec.retry_s
    )
    found = []
    for index, (deployment_spec, deployment) in enumerate(
        zip(configured.deployments, fleet.deployments, strict=True)
    ):
        if spec.deployments and deployment.name not in spec.deployments:
            continue
        members = members_of(
            deployment_spec, deployment, fleet, settings.engines, spec, path.parent
        )
        memory: Reoptimiser[Found] = Reoptimiser(terms=terms)
        found.append(_Entry(index=index, deployment=deployment, members=members, memory=memory))
    return found


def _predictor(spec: AicSpec, configured: ControllerSettings) -> Aic:
    cache = Path(configured.state_dir) / "aic" if spec.cache is None else Path(spec.cache)
    python = None if spec.python is None else Path(spec.python)
    return Aic(python=python, limit_s=spec.limit_s, cache=cache)


def _drifts(entry: _Entry, state: State | None) -> int:
    if state is None or not state.calibration:
        return 0
    return state.calibration[entry.index].drift.fired


def _factors(entry: _Entry, state: State | None) -> tuple[float, float]:
    """The largest corrections of TTFT and ITL in force over the deployment's roles."""
    if state is None or not state.calibration:
        return 1.0, 1.0
    roles = state.calibration[entry.index].roles
    return (
        max((role.in_force.ttft for role in roles), default=1.0),
        max((role.in_force.itl for role in roles), default=1.0),
    )
