"""When predicted engines are asked for, taken, kept and given up."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wattline.catalog.yaml_files import parse
from wattline.controller.model_engines import requests_of
from wattline.controller.models import ModelDesk
from wattline.controller.settings import ControllerSettings
from wattline.controller.site import build_site
from wattline.core.calibration.drift import Drift
from wattline.core.calibration.factors import Factors
from wattline.core.calibration.state import DeploymentCalibration, RoleCalibration
from wattline.core.engine import ForwardPass
from wattline.core.errors import InputError
from wattline.core.fleet import Role, Setting
from wattline.core.profile import ProfileEngine
from wattline.core.settings import Settings
from wattline.core.state import DemandState, State
from wattline.drivers.aic import Aic, AicError, Point, Request, Table

FULL = Setting(700.0)


class Predictor(Aic):
    """Answers at once, or raises; `speed` divides all times. Holds answers back while `held`."""

    def __init__(self) -> None:
        super().__init__(python=None, limit_s=1.0, cache=None)
        self.speed = 1.0
        self.why: Exception | None = None
        self.watts: tuple[float | None, float | None] = (None, None)
        self.coverage = 0.0
        self.kept = False
        self.asked: list[Sequence[Request]] = []
        self.free = threading.Event()
        self.free.set()

    def cached(self, requests: Sequence[Request]) -> list[Table] | None:
        """What `sweep` would answer, if it is kept."""
        return [self._table(request) for request in requests] if self.kept else None

    def sweep(self, requests: Sequence[Request]) -> list[Table]:
        """A table per request."""
        self.asked.append(requests)
        assert self.free.wait(30.0)
        if self.why is not None:
            raise self.why
        return [self._table(request) for request in requests]

    def _table(self, request: Request) -> Table:
        def point(tokens: int, batch: int, seconds: float, watts: float | None) -> Point:
            return Point(
                tokens=tokens,
                batch=batch,
                seconds=seconds / self.speed,
                power_w=watts,
                coverage=self.coverage,
            )

        return Table(
            package="stand-in 1",
            model=request.models[0],
            backend_version="2",
            kv_tokens=500_000,
            prefill=tuple(
                point(t, 1, 0.01 + t * 2e-5, self.watts[0]) for t in request.prefill_tokens
            ),
            decode=tuple(
                point(c, b, 0.006 + b * 2e-5 + b * c * 1e-8, self.watts[1])
                for c in request.contexts
                for b in request.batches
                if b * c <= 500_000
            ),
            failed_points=0,
            why=None,
        )


class Bench:
    """A desk, its predictor and a clock."""

    def __init__(self, folder: Path, predictor: Predictor, **aic: Any) -> None:
        self.predictor = predictor
        self.now_s = 1000.0
        self.configured = configuration(folder, **aic)
        self.path = folder / "controller.yaml"
        self.declared: Settings = build_site(self.configured, self.path).settings
        self.desk = ModelDesk(self.declared, self.configured, self.path, predictor)
        self.settings = self.desk.start(self.declared, self.now_s)
        self.state: State | None = None

    def settle(self) -> bool:
        """Tick until no sweep runs; whether engines changed."""
        changed = False
        for _ in range(3000):
            changed |= self.desk.poll(self.now_s, self.state)
            self.now_s += 0.001
            if not self.view.sweeping:
                break
            threading.Event().wait(0.005)
        assert not self.view.sweeping
        self.settings = self.desk.apply(self.settings)
        return changed

    @property
    def view(self) -> Any:
        """Of the one deployment."""
        return self.desk.view.deployments[0]

    def drift(self, fired: int, ttft: float = 1.0, itl: float = 1.0) -> None:
        """What the decision says of drifts, and the corrections in force."""
        factors = Factors(ttft=ttft, itl=itl, power=1.0)
        roles = tuple(
            RoleCalibration(role=role, factors=factors, in_force=factors)
            for role in (Role.PREFILL, Role.DECODE)
        )
        calibration = DeploymentCalibration(roles=roles, drift=Drift(fired=fired))
        self.state = State(demand=(DemandState(),), calibration=(calibration,))


def configuration(folder: Path, **aic: Any) -> ControllerSettings:
    document = {
        "state_dir": str(folder / "state"),
        "deployments": [
            {
                "name": "chat",
                "model": "Llama-3.1-8B",
                "slo": {"ttft_s": 2.0, "itl_s": 0.05},
                "pools": [
                    {"name": "p", "role": "prefill", "gpu": "H200", "gpus": 2},
                    {"name": "d", "role": "decode", "gpu": "H200", "gpus": 2},
                ],
            }
        ],
        "nodes": [
            {
                "name": "n",
                "grants": str(folder / "grants.json"),
                "report_file": str(folder / "report.json"),
                "gpus": {"p": ["p0", "p1"], "d": ["d0", "d1"]},
            }
        ],
        "budget": {"total_w": 2000.0},
        "models": {"aic": aic},
    }
    return parse(ControllerSettings, json.dumps(document).encode(), "file")


@pytest.fixture(name="predictor")
def _predictor() -> Iterator[Predictor]:
    predictor = Predictor()
    yield predictor
    predictor.free.set()


@pytest.fixture(name="make")
def _make(tmp_path: Path, predictor: Predictor) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**aic: Any) -> Bench:
        made.append(Bench(tmp_path, predictor, **aic))
        return made[-1]

    yield make
    predictor.free.set()
    for bench in made:
        bench.desk.close()


def test_declared_engines_decide_until_a_sweep_was_good(
    make: Callable[..., Bench], predictor: Predictor
) -> None:
    predictor.free.clear()
    bench = make()
    assert not bench.desk.poll(bench.now_s, None)
    assert bench.view.state == "sweeping"
    assert bench.desk.apply(bench.settings) is bench.settings
    predictor.free.set()
    assert bench.settle()
    assert bench.view.state == "in force"
    assert (bench.view.source, bench.view.sweeps, bench.view.exceptions) == ("aic", 1, 0)
    prefill, decode = bench.settings.engines
    assert isinstance(prefill, ProfileEngine)
    assert isinstance(decode, ProfileEngine)
    assert prefill.measured_s(ForwardPass(1024, 1024 * 1025 / 2)) == pytest.approx(0.03048)
    assert "predicted by stand-in 1, 2" in decode.coverage
    assert "watts: not predicted" in decode.coverage
    assert decode.roofline == bench.declared.engines[1]
    assert not bench.settle()  # nothing more is asked for
    assert len(predictor.asked) == 1


def test_what_is_kept_counts_from_the_first_tick(
    make: Callable[..., Bench], predictor: Predictor
) -> None:
    predictor.kept = True
    bench = make()
    assert bench.view.state == "in force"
    assert bench.settings.engines != bench.declared.engines
    assert not bench.settle()
    assert predictor.asked == []


@pytest.mark.parametrize(
    ("change", "reason", "why"),
    [
        ({"why": AicError("aiconfigurator is not installed: x")}, "startup_exception", "installed"),
        ({"why": ZeroDivisionError("a defect")}, "startup_exception", "ZeroDivisionError"),
        ({"speed": 0.005}, "infeasible_at_startup", "the target 2 s"),
        ({"speed": 0.12}, "infeasible_at_startup", "the target 0.05 s"),
        ({"speed": 0.1225}, "infeasible_at_startup", "margins included"),
    ],
)
def test_it_fails_closed_at_the_start(
    make: Callable[..., Bench], predictor: Predictor, change: Any, reason: str, why: str
) -> None:
    for name, value in change.items():
        setattr(predictor, name, value)
    bench = make()
    assert not bench.settle()
    assert bench.settings is bench.declared
    assert bench.view.disabled_reason == reason
    assert bench.view.state == "disabled"
    assert why in bench.view.why
    assert bench.desk.view.problems == (f"models of chat: {bench.view.why}",)
    bench.now_s += 1e6
    bench.settle()
    assert len(predictor.asked) == 1


def test_it_stays_open_at_run_time_until_too_many_failures(
    make: Callable[..., Bench], predictor: Predictor
) -> None:
    bench = make(max_failures=2, retry_s=30.0)
    bench.settle()
    good = bench.settings.engines
    predictor.why = AicError("aiconfigurator: no answer in 1 s")
    bench.drift(1)
    assert not bench.settle()
    assert bench.desk.apply(bench.settings).engines == good
    assert bench.view.consecutive_failures == 1
    assert bench.view.disabled_reason is None
    bench.settle()
    assert len(predictor.asked) == 2  # not before retry_s has passed
    bench.now_s += 31.0
    bench.settle()
    assert bench.view.disabled_reason == "consecutive_failures"
    assert bench.desk.apply(bench.settings).engines == good
    assert (bench.view.sweeps, bench.view.exceptions) == (3, 2)


def test_a_drift_asks_anew_and_new_engines_replace_the_old(
    make: Callable[..., Bench], predictor: Predictor
) -> None:
    bench = make()
    bench.settle()
    old = bench.settings.engines
    bench.drift(1)
    assert not bench.settle()  # the same answer changes nothing
    assert len(predictor.asked) == 2
    assert not bench.settle()
    assert len(predictor.asked) == 2  # the drift has been answered
    predictor.speed = 0.5
    bench.drift(2)
    assert bench.settle()
    assert bench.settings.engines != old
    assert bench.view.regressions == 1


def test_corrections_in_force_count_when_a_sweep_is_judged(
    make: Callable[..., Bench], predictor: Predictor
) -> None:
    bench = make()
    bench.settle()
    bench.drift(1, itl=2.0)
    bench.settle()
    assert bench.view.consecutive_failures == 0
    predictor.speed = 0.2  # a step of 30 ms and more: with the factor above 50 ms
    bench.drift(2, itl=2.0)
    bench.settle()
    assert bench.view.consecutive_failures == 1
    assert "ITL" in bench.view.why


def test_operators_enable_disable_and_ask_again(
    make: Callable[..., Bench], predictor: Predictor
) -> None:
    predictor.why = AicError("aiconfigurator is not installed")
    bench = make()
    bench.settle()
    with pytest.raises(InputError, match="sweeps are disabled: enable them"):
        bench.desk.command("retry", None, "ann", "x")
    predictor.why = None
    bench.desk.command("enable", "chat", "ann", "installed it")
    assert bench.settle()
    assert bench.view.state == "in force"
    bench.desk.command("retry", None, "ann", "x")
    bench.settle()
    assert len(predictor.asked) == 3
    bench.desk.command("disable", None, "ann", "maintenance")
    bench.drift(5)
    bench.settle()
    assert bench.view.disabled_reason == "operator"
    assert bench.view.why == "by ann: maintenance"
    assert bench.desk.view.problems == ()
    assert len(predictor.asked) == 3
    assert bench.view.source == "aic"  # what was good stays in force


def test_orders_that_make_no_sense_are_refused(make: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make()
    with pytest.raises(InputError, match="use one of chat"):
        bench.desk.command("retry", "code", "ann", "x")
    with pytest.raises(InputError, match="use one of enable"):
        bench.desk.command("explode", None, "ann", "x")
    plain = bench.configured.model_copy(update={"models": type(bench.configured.models)()})
    desk = ModelDesk(bench.declared, plain, tmp_path / "controller.yaml")
    with pytest.raises(InputError, match="this controller predicts none"):
        desk.command("retry", None, "ann", "x")
    assert desk.view.deployments[0].state == "declared"
    assert not desk.poll(0.0, None)


def test_credible_watts_scale_the_draw_and_others_do_not(
    make: Callable[..., Bench], predictor: Predictor
) -> None:
    predictor.watts, predictor.coverage = (640.0, 1275.0), 0.95
    bench = make()
    bench.settle()
    view = bench.view
    assert (view.prefill_w, view.decode_w) == (640.0, 700.0)
    assert (view.prefill_raw_w, view.decode_raw_w) == (640.0, 1275.0)
    assert (view.clamped_prefill, view.clamped_decode) == (0, 1)
    assert "watts of prefill and decode: predicted" in bench.settings.engines[0].coverage  # type: ignore[attr-defined]
    prompt = ForwardPass(128, 128 * 129 / 2)
    assert bench.settings.engines[0].cost(prompt, FULL).power_w == pytest.approx(640.0, abs=2.0)
    predictor.watts = (640.0, None)
    bench.drift(1)
    bench.settle()
    assert (bench.view.prefill_w, bench.view.decode_w) == (700.0, 700.0)
    assert bench.view.prefill_raw_w is None
    assert bench.settings.engines[0].prefill_watts == 1.0  # type: ignore[attr-defined]


def test_longer_requests_ask_for_longer_points(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.settle()
    bench.drift(1)
    assert bench.state is not None
    bench.state = replace(bench.state, demand=(DemandState(mix_in_force=(90_000.0, 500.0, 0.0)),))
    bench.settle()
    first, second = (asked[0] for asked in bench.predictor.asked)
    assert first.prefill_tokens[-1] == 32_768
    assert second.prefill_tokens[-1] == 262_144
    assert all(math.log2(tokens).is_integer() for tokens in second.prefill_tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": {"kind": "polynomial"}}, "only roofline engines are replaced"),
        ({"precision": "nvfp4"}, "leave precision out"),
    ],
)
def test_deployments_that_cannot_be_predicted_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    configured = configuration(tmp_path)
    document = configured.model_dump(mode="json")
    document["deployments"][0].update(change)
    changed = ControllerSettings.model_validate(document)
    declared = build_site(changed, tmp_path / "file").settings
    with pytest.raises(InputError, match=message):
        ModelDesk(declared, changed, tmp_path / "file")


def test_other_sizes_are_compared_and_nothing_follows_from_it(
    make: Callable[..., Bench], predictor: Predictor
) -> None:
    bench = make(alternatives=[1, 2, 4])
    bench.settle()
    # Today's size is no alternative, and 4 GPUs do not fit a pool of 2.
    assert [asked[0].tp for asked in predictor.asked] == [1, 2, 2]
    found = bench.view.alternatives
    assert [(each.pool, each.gpus_per_replica) for each in found] == [("p", 2), ("d", 2)]
    # The stand-in is no faster on two GPUs, so each serves half.
    assert all(0.3 < each.speedup < 0.7 for each in found)
    assert bench.settings.fleet == bench.declared.fleet
    assert not bench.settle()


def test_a_size_that_cannot_be_estimated_is_no_alternative(
    make: Callable[..., Bench], predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = predictor._table

    def one_only(request: Request) -> Table:
        if request.tp != 1:
            raise AicError("aiconfigurator: no KV budget")
        return table(request)

    monkeypatch.setattr(predictor, "_table", one_only)
    bench = make(alternatives=[2])
    assert bench.settle()
    assert bench.view.alternatives == ()
    assert bench.view.exceptions == 0


def test_words_of_the_library_are_filled_in(make: Callable[..., Bench]) -> None:
    bench = make(model_names={"chat": "meta-llama/Llama-3.1-8B-Instruct"}, backend="trtllm")
    bench.settle()
    request = bench.predictor.asked[0][1]
    assert request.models == ("meta-llama/Llama-3.1-8B-Instruct",)
    assert (request.system, request.backend, request.tp) == ("h200_sxm", "trtllm", 1)
    assert request.moe_tp is None
    assert request.batches[-1] == 512


def test_a_changed_model_folder_is_another_question(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    digests = []
    for text in ("{}", '{"a": 1}'):
        (tmp_path / "model" / "config.json").write_text(text)
        configured = configuration(tmp_path, model_names={"chat": "model"})
        declared = build_site(configured, tmp_path / "file").settings
        desk = ModelDesk(declared, configured, tmp_path / "file", Predictor())
        entry = desk._entries[0]
        assert configured.models.aic is not None
        mix = declared.expected_mix(0)
        digests.append(requests_of(entry.members, configured.models.aic, mix)[0])
    assert digests[0].models == (str(tmp_path / "model"),)
    assert digests[0].config_digest != digests[1].config_digest
