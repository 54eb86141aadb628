"""A small fleet under heavy load, made in milliseconds."""

from __future__ import annotations

from functools import cache

import yaml

from wattline.catalog.yaml_files import parse
from wattline.sim.experiment import Experiment, Traffic, prepare
from wattline.sim.scenario import Scenario

SMALL = """
name: small
description: "Four H200 under more load than their budget can serve."
duration_s: 40
drain_s: 10
deployments:
  - name: chat
    model: Llama-3.1-8B
    slo: {ttft_s: 0.5, itl_s: 0.03}
    pools:
      - {name: prefill, role: prefill, gpu: H200, gpus: 2, startup_s: 5}
      - {name: decode, role: decode, gpu: H200, gpus: 2, startup_s: 5}
traffic:
  - {kind: conversation, mean_rps: 60}
budget: {total_percent: 60}
plant: {gpus_per_node: 2}
"""


def scenario(**changes: object) -> Scenario:
    """The small scenario with top-level keys replaced."""
    document = yaml.safe_load(SMALL) | changes
    return parse(Scenario, yaml.safe_dump(document), "small.yaml")


@cache
def small() -> Experiment:
    """The small scenario, ready."""
    return prepare(scenario(), Traffic())


def experiment(**changes: object) -> Experiment:
    """The small scenario with changes, ready."""
    return prepare(scenario(**changes), Traffic())
