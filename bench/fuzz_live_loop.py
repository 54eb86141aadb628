"""A whole controller that ticks while what it reads lies.

After each tick: it came to an end in time, with a decision; bookings keep the budget, except for
what is told as exposure; caps lie in the GPUs' range and replicas at their floors; limits in force
keep the budget; everything that people read is one line; the state page and the metrics can be
read. After the lies: it sees the true demand again within a stated time, and the whole recording is
replayed to the byte.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit" / "controller"))

from controller_world import World
from prometheus_stand_in import PrometheusStandIn

import fuzz_live_samples as samples
from fuzz import Result, wrong_with
from fuzz_live_feeds import MOST_REQUESTS, Raw
from fuzz_mutations import Mutator
from wattline.controller.assemble import assemble
from wattline.controller.metrics import exposition
from wattline.controller.state_page import state_page
from wattline.controller.view import TickView
from wattline.drivers.dynamo.demand import MOST_TOKENS_EACH
from wattline.drivers.dynamo.pages import parse_page
from wattline.drivers.grant_log import FencedError
from wattline.recording.record import Recording
from wattline.sim.replay import replay

CALL_S = 2.0
_MOST = 1.01 * MOST_TOKENS_EACH
RECOVER_TICKS = 300
"""Until the demand that is seen is the true one again: what one wrong page claims at most (a
billion requests) has faded by then."""
_LABELS = {"model": samples.MODEL}
_SERIES = {
    "requests_started_total": "1200",
    'status="success"': "1200",
    "input_sequence_tokens": "800",
    "output_sequence_tokens": "120",
    "cached_tokens": "80",
}
"""Series of Prometheus by a part of the query."""
_GROWS = re.compile(r"^(dynamo_frontend_\w+_(?:total|count|sum|bucket)\{.*\}) (\S+)$", re.M)


def good_page(times: int) -> bytes:
    """The page of a frontend that has seen `times` what the sample's has."""
    text = samples.frontend_pages()[2].decode()
    return _GROWS.sub(lambda found: f"{found[1]} {float(found[2]) * times!r}", text).encode()


class LyingWorld(World):
    """A controller with one frontend, one worker per pool, and thresholds that it sets."""

    def __init__(self, folder: Path) -> None:
        self.frontend, self.worker = Raw(), Raw()
        self.prometheus = PrometheusStandIn(lambda: self.clock.now_s)
        url = self.worker.url
        super().__init__(
            folder,
            sources={
                "frontends": {"chat": [self.frontend.url]},
                "workers": {"prefill": [url], "decode": [url]},
                "model_names": {"chat": samples.MODEL},
                "call_s": CALL_S,
                "prometheus": {
                    "url": self.prometheus.url,
                    "limit_s": CALL_S,
                    "interval_s": 1.0,
                },
            },
            actuation={"admission": "autoset"},
        )
        self.asked = 0
        self.settle()
        assert self.assembly.controller.view is not None
        decision = self.assembly.controller.view.decision
        assert decision is not None
        assert decision.facts is not None
        self.true_rps = decision.facts.deployments[0].seen_rps

    def settle(self) -> None:
        """Start and reach rest with true answers."""
        self.assembly = assemble(self.settings, self.config, advisory=False, clock=self.clock)
        for _ in range(8):
            self.true_answers()
            self.step()

    def true_answers(self) -> None:
        """Let all sources say what is."""
        self.asked += 1
        self.frontend.paths["/metrics"] = good_page(self.asked)
        self.frontend.paths["/busy_threshold"] = json.dumps(samples.THRESHOLD_ANSWERS[0]).encode()
        self.worker.paths["/metrics"] = samples.worker_pages()[3]
        self.prometheus.mode, self.prometheus.lag_s = "well", 3.0
        self.prometheus.series = {part: [(_LABELS, text)] for part, text in _SERIES.items()}
        self.prometheus.bins = ["20"] * 8

    def step(self) -> TickView:
        """One second."""
        self.clock.now_s += 1.0
        self.agent.step(self.clock.now_s)
        view = self.assembly.controller.tick()
        self.agent.step(self.clock.now_s)
        return view

    def close(self) -> None:
        """End everything."""
        self.stop()
        self.prometheus.end()
        self.frontend.close()
        self.worker.close()


def _wrong_in(view: TickView, world: LyingWorld, *, trusted: bool) -> str | None:
    """What does not hold after a tick; None: all does. trusted: the reports told the truth."""
    texts = [
        *view.problems,
        *view.snapshot.missing,
        *view.caps.exposures,
        *(frontend.why or "" for frontend in view.frontends),
        *(node.why or "" for node in view.nodes),
        *(reason.sentence for reason in (view.decision.reasons if view.decision else ())),
    ]
    wrong = next((found for text in texts if (found := wrong_with(text)) is not None), None)
    if wrong is not None:
        return wrong
    if view.took_s > 2.0 * CALL_S + 1.0:
        return f"the tick took {view.took_s:.1f} s"
    usable_w = view.budget.budget.usable_w
    over_w = sum(view.caps.booked_w) - usable_w
    if over_w > view.caps.exposure_w + 0.01:
        return f"{over_w:.1f} W over the budget are booked, {view.caps.exposure_w:.1f} W exposed"
    if trusted and world.enforced_w > usable_w + 0.01:
        return f"{world.enforced_w:.1f} W in force, {usable_w:.1f} W usable"
    fleet = world.assembly.controller.parts.site.fleet
    page = state_page(view, fleet, time.monotonic())
    parse_page(exposition(lambda: view, fleet)(), "own metrics", ("wattline_", "dynamo_"))
    if json.loads(page)["tick"] != view.snapshot.tick:
        return "the state page is of another tick"
    if view.decision is None:
        return f"no decision: {view.problems}"
    for entry in view.decision.facts.deployments if view.decision.facts else ():
        if not (0.0 <= entry.demand_rps <= MOST_REQUESTS and 0.0 <= entry.input_tokens <= _MOST):
            return f"planned for {entry.demand_rps} requests/s of {entry.input_tokens} tokens"
    for plan, pool in zip(view.decision.plan, fleet.pools, strict=True):
        if not 200.0 <= plan.setting.cap_w <= 700.0 or plan.replicas < pool.min_replicas:
            return f"{pool.name}: planned {plan}"
    return None


def _lie_of_history(world: LyingWorld, mutator: Mutator) -> None:
    """Series with other values, twice, or gone; samples from the future or of long ago."""
    draw, server = mutator.draw, world.prometheus
    part = draw.choice(list(_SERIES))
    text = draw.choice(samples.HOSTILE_NUMBERS)
    if len(text) > 400:
        text = text[:400]
    rows = [(_LABELS, text)] * draw.choice((0, 1, 1, 1, 2))
    series = {**server.series, part: rows}
    if draw.random() < 0.2:
        series = {each: [(_LABELS, text)] for each in _SERIES}
    server.series = series
    server.bins = [text if draw.random() < 0.3 else "20" for _ in range(8)]
    server.lag_s = draw.choice((3.0, 3.0, -1e6, 1e9, 30.0))
    server.mode = draw.choice(("well", "well", "well", "nan", "wrong"))


def _lie(world: LyingWorld, mutator: Mutator) -> None:
    """Let one source, or several, say what is not."""
    draw = mutator.draw
    what = draw.randrange(4)
    if draw.random() < 0.5:
        _lie_of_history(world, mutator)
    if what in (0, 3):
        pages = [world.frontend.paths["/metrics"], *samples.frontend_pages()]
        world.frontend.paths["/metrics"] = samples.some_page(mutator, pages)
    if what in (1, 3):
        page = samples.some_page(mutator, samples.worker_pages())
        world.worker.paths["/metrics"] = page
    if what in (2, 3):
        answer = mutator.some_json(samples.THRESHOLD_ANSWERS)
        world.frontend.paths["/busy_threshold"] = answer


def _recovered(world: LyingWorld) -> str | None:
    """None once the controller sees the true demand again."""
    found = "no tick"
    for _ in range(RECOVER_TICKS):
        world.true_answers()
        view = world.step()
        facts = None if view.decision is None else view.decision.facts
        if facts is None:
            found = "no decision"
            continue
        entry = facts.deployments[0]
        found = f"sees {entry.seen_rps} rps, outage {entry.outage}, {view.problems}"
        near = abs(entry.seen_rps - world.true_rps) <= 0.2 * world.true_rps
        # The sample's frontend takes no thresholds: that it says otherwise is its own problem.
        if entry.outage is None and near and len(view.problems) <= 1:
            return None
    return f"{RECOVER_TICKS} s after the last lie it {found}"


def fuzz_loop(cases: int, seed: int, *, reports: bool) -> Result:
    """So many ticks with a lie each. reports: the node's reports are what lies."""
    result = Result("loop over lying reports" if reports else "loop over lying pages")
    mutator = Mutator(f"{seed}/{result.target}")
    with tempfile.TemporaryDirectory() as folder:
        world = LyingWorld(Path(folder))
        try:
            _lies(world, mutator, cases, result, reports=reports)
            if not reports:
                slow = _recovered(world)
                if slow is not None:
                    result.defect(b"", slow)
        finally:
            world.close()
        outcome = replay(Recording(Path(folder) / "state" / "recording"))
        if outcome.difference is not None:
            result.defect(b"", f"not replayed to the byte: {outcome.difference}")
    return result


def _lies(
    world: LyingWorld, mutator: Mutator, cases: int, result: Result, *, reports: bool
) -> None:
    for number in range(cases):
        world.true_answers()
        world.clock.now_s += 1.0
        world.agent.step(world.clock.now_s)
        lie = b""
        if reports:
            report = json.loads((world.folder / "report.json").read_bytes())
            lie = mutator.some_json([report])
            (world.folder / "report.json").write_bytes(lie)
        elif number % 5:
            _lie(world, mutator)
            lie = world.frontend.paths["/metrics"]
        result.cases += 1
        begin_s = time.perf_counter()
        try:
            view = world.assembly.controller.tick()
        except FencedError:
            # A report of a newer epoch: another controller has taken over, as far as one can know.
            result.refused += 1
            world.stop()
            world.agent.restart(world.clock.now_s)
            world.agent.step(world.clock.now_s)
            world.settle()
            continue
        except Exception as error:
            result.defect(lie, f"{type(error).__name__}: {error}")
            continue
        result.slowest_ms = max(result.slowest_ms, (time.perf_counter() - begin_s) * 1000)
        world.agent.step(world.clock.now_s)
        try:
            wrong = _wrong_in(view, world, trusted=not reports)
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        if wrong is None:
            result.taken += 1
        else:
            result.defect(lie, wrong)
