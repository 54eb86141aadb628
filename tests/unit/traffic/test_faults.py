"""Faults: what each kind must be told, and which GPUs a target means."""

from __future__ import annotations

import pytest

from wattline.catalog.yaml_files import parse
from wattline.core.errors import InputError
from wattline.core.fleet import Fleet
from wattline.sim.faults import Target, node_of_gpus, target_gpus
from wattline.sim.scenario import Scenario
from wattline.sim.scenario_build import to_fleet

TEXT = """\
name: small
description: Two pools.
duration_s: 60
deployments:
  - name: chat
    model: Llama-3.3-70B
    precision: fp8
    slo: {{ttft_s: 1.0, itl_s: 0.05}}
    pools:
      - {{name: prefill, role: prefill, gpu: H200, gpus: 6}}
      - {{name: decode, role: decode, gpu: H200, gpus: 4}}
traffic:
  - {{kind: constant, rate_rps: 2, input_tokens: 100, output_tokens: 10}}
budget:
  total_percent: 80
faults:
  - {fault}
"""


def read(fault: str) -> Scenario:
    return parse(Scenario, TEXT.format(fault=fault), "mine.yaml")


@pytest.fixture
def fleet() -> Fleet:
    return to_fleet(read("{kind: metrics_outage, at_s: 0}"))


def test_nodes_hold_gpus_of_one_pool(fleet: Fleet) -> None:
    assert node_of_gpus(fleet, 4) == (0, 0, 0, 0, 1, 1, 2, 2, 2, 2)


@pytest.mark.parametrize(
    ("target", "gpus"),
    [
        (Target(), range(10)),
        (Target(pool="decode"), range(6, 10)),
        (Target(node=1), (4, 5)),
        (Target(pool="prefill", node=1), (4, 5)),
        (Target(pool="decode", node=0), range(6, 10)),
        (Target(gpu=7), (7,)),
        (Target(pool="decode", gpu=1), (7,)),
    ],
)
def test_targets_by_pool_node_and_gpu(fleet: Fleet, target: Target, gpus: object) -> None:
    assert target_gpus(target, fleet, 4) == tuple(gpus)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(pool="deocde"), "did you mean decode"),
        (Target(node=3), "nodes are 0 to 2"),
        (Target(pool="decode", node=1), "nodes are 0 to 0"),
        (Target(gpu=10), "GPUs are 0 to 9"),
    ],
)
def test_targets_that_are_not_there(fleet: Fleet, target: Target, message: str) -> None:
    with pytest.raises(InputError, match=message):
        target_gpus(target, fleet, 4)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("{kind: metrics_outrage, at_s: 0}", "did you mean metrics_outage"),
        ("{at_s: 0}", "give it a kind"),
        ("{kind: metrics_outage}", "faults[0].at_s: 'missing'"),
        ("{kind: metrics_outage, at_s: -1}", "faults[0].at_s: -1"),
        ("{kind: metrics_outage, at_s: 0, duration_s: 0}", "duration_s: 0"),
        ("{kind: metrics_outage, at_s: 0, target: {gpu: 1}}", "target: {'gpu': 1}: unknown key"),
        ("{kind: node_lost, at_s: 0, target: {node: 1, gpu: 1}}", "node or gpu, not both"),
        ("{kind: node_lost, at_s: 0, target: {pol: decode}}", "did you mean pool"),
        ("{kind: write_clamped, at_s: 0}", "floor_w"),
        ("{kind: budget_cut, at_s: 0}", "exactly one of to_w, to_percent, to_fraction"),
        ("{kind: budget_cut, at_s: 0, to_w: 1, to_percent: 1}", "exactly one of"),
        ("{kind: budget_restore, at_s: 0, to_w: 1, to_percent: 1}", "at most one of"),
        ("{kind: bias_step, at_s: 0, signal: ttft, factor: 1.1}", "signal: 'ttft'"),
        ("{kind: bias_sine, at_s: 0, signal: power, amplitude: 1, period_s: 9}", "amplitude: 1"),
        (
            "{kind: bias_step, at_s: 0, signal: power, factor: 1.1, target: {gpu: 1}}",
            "a bias holds for whole pools",
        ),
        ("{kind: heat_derate, at_s: 0, speed: 1.5}", "speed: 1.5"),
        ("{kind: replica_never_ready, at_s: 0, pool: prefil}", "did you mean prefill"),
    ],
)
def test_bad_faults_are_refused(fault: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(fault)
    assert message in str(caught.value)
    assert str(caught.value).startswith("mine.yaml:")


def test_a_lasting_fault_says_when_it_ends() -> None:
    for fault, until_s in (
        ("{kind: metrics_outage, at_s: 5, duration_s: 2.5}", 7.5),
        ("{kind: metrics_outage, at_s: 5}", float("inf")),
    ):
        assert read(fault).faults[0].until_s == until_s  # type: ignore[union-attr]
