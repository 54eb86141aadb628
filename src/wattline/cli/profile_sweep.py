"""`wattline profile sweep`: what a predictor says of replica sizes and power caps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from wattline.catalog.profiles import Profile
    from wattline.controller.model_engines import Found, Member
    from wattline.core.fleet import Fleet, Slo
    from wattline.core.mix import Mix

_CAPS = 6


@click.command()
@click.option("--model", required=True, help="Model, as `wattline models list` has it.")
@click.option("--gpu", required=True, help="GPU product.")
@click.option(
    "--gpus-per-replica",
    "sizes",
    type=click.IntRange(1, 64),
    multiple=True,
    default=(1,),
    help="Tensor-parallel size of a replica; repeats.",
)
@click.option("--expert-parallel", is_flag=True, help="Spread whole experts over the GPUs.")
@click.option("--input-tokens", type=click.IntRange(1, 1 << 20), default=2048, show_default=True)
@click.option("--output-tokens", type=click.IntRange(1, 1 << 20), default=256, show_default=True)
@click.option("--ttft-s", type=float, default=2.0, show_default=True, help="Target.")
@click.option("--itl-s", type=float, default=0.05, show_default=True, help="Target.")
@click.option("--python", type=click.Path(path_type=Path), help="Interpreter that has the library.")
@click.option(
    "--backend", type=click.Choice(["vllm", "sglang", "trtllm"]), default="vllm", show_default=True
)
@click.option("--limit-s", type=float, default=120.0, show_default=True, help="Time limit.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder in which tables are kept.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write a folder with a profile per size, DIR/1, DIR/2 and so on, for `profile` engines.",
    metavar="DIR",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sweep(
    *,
    sizes: tuple[int, ...],
    input_tokens: int,
    output_tokens: int,
    python: Path | None,
    limit_s: float,
    cache: Path | None,
    out: Path | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Ask AIConfigurator for latencies; show rates and watts over replica sizes and power caps.

    The library need not be installed here: --python names an interpreter that has it. Rates are
    those of one replica of a prefill and of a decode pool that meets the targets, from the engines
    that `models.aic` would give the controller; --out keeps them for simulations.

    \b
    Examples:
      wattline profile sweep --model Qwen3-32B --gpu H200 --gpus-per-replica 1 --gpus-per-replica 2
      wattline profile sweep --model Qwen3-32B --gpu H200 --python aic/bin/python --out profiles
    """  # noqa: D301  # click wants the backspace itself
    from wattline.catalog.fleet_spec import DeploymentSpec, to_engines, to_fleet
    from wattline.catalog.yaml_files import parse
    from wattline.controller.model_engines import found_of, members_of, requests_of
    from wattline.controller.models_settings import AicSpec
    from wattline.core.mix import Mix
    from wattline.drivers.aic import Aic

    here = Path.cwd()
    document = json.dumps(_deployment(sizes, **asked)).encode()
    spec = parse(DeploymentSpec, document, "the command line")
    aic = AicSpec(backend=asked["backend"])
    fleet = to_fleet([spec], "sweep")
    engines = to_engines([spec], fleet, here, "sweep")
    members = members_of(spec, fleet.deployments[0], fleet, engines, aic, here)
    mix = Mix(float(input_tokens), float(output_tokens))
    predictor = Aic(python=python, limit_s=limit_s, cache=cache)
    tables = predictor.sweep(requests_of(members, aic, mix))
    records = []
    for member, table in zip(members, tables, strict=True):
        found = found_of([member], fleet, [table])
        records.append(_record(member, found, fleet, mix))
        if out is not None:
            _write(out / str(member.tp), found.profiles[0], member.tp)
    if as_json:
        click.echo(json.dumps(records, indent=2, allow_nan=False))
    else:
        _print(records)


def _deployment(
    sizes: tuple[int, ...],
    *,
    model: str,
    gpu: str,
    expert_parallel: bool,
    ttft_s: float,
    itl_s: float,
    backend: str,
) -> dict[str, Any]:
    """As a configuration would have it: a pool per size."""
    pools = [
        {
            "name": f"tp{size}",
            "role": "aggregated",
            "gpu": gpu,
            "gpus": size,
            "gpus_per_replica": size,
            "expert_parallel": expert_parallel,
        }
        for size in dict.fromkeys(sizes)
    ]
    slo = {"ttft_s": ttft_s, "itl_s": itl_s}
    return {"name": "sweep", "model": model, "slo": slo, "pools": pools}


def _record(member: Member, found: Found, fleet: Fleet, mix: Mix) -> dict[str, Any]:
    from wattline.core.capacity import capacity
    from wattline.core.fleet import Role, Setting

    product = fleet.product_of(member.pool)
    engine = found.engines[0]
    span_w = product.default_limit_w - product.min_limit_w
    caps_w = [round(product.default_limit_w - span_w * i / (_CAPS - 1), 1) for i in range(_CAPS)]
    settings = tuple(Setting(cap_w) for cap_w in caps_w)
    rows: list[dict[str, Any]] = [{"cap_w": cap_w} for cap_w in caps_w]
    slo: Slo = fleet.deployments[0].slo
    for role in (Role.PREFILL, Role.DECODE):
        table = capacity(engine, role, settings, mix, slo, servers=1)
        for row, rate, draw_w in zip(rows, table.rate_rps, table.draw_w, strict=True):
            rps = rate if table.relaxed == 1.0 else 0.0
            per_request_j = member.tp * draw_w / rps if rps > 0.0 else None
            row[role.value] = {"rps": rps, "power_w": draw_w, "j_per_request": per_request_j}
    return {
        "gpus_per_replica": member.tp,
        "package": found.package,
        "backend_version": found.backend_version,
        "coverage": engine.coverage,
        "kv_capacity_tokens": engine.kv_capacity_tokens,
        "prefill_w": found.prefill.raw_w,
        "decode_w": found.decode.raw_w,
        "rows": rows,
    }


def _write(folder: Path, profile: Profile, gpus: int) -> None:
    from wattline.catalog.profiles import raw_documents
    from wattline.sim.files import write_text

    for name, document in raw_documents(profile, gpus).items():
        write_text(folder / name, json.dumps(document, allow_nan=False) + "\n")


def _print(records: list[dict[str, Any]]) -> None:
    for record in records:
        gpus = record["gpus_per_replica"]
        click.echo(f"{gpus} GPU{'s' if gpus > 1 else ''} per replica; {record['coverage']}")
        click.echo(f"{'cap':>9}{'prefill':>16}{'per GPU':>10}{'decode':>18}{'per GPU':>10}")
        for row in record["rows"]:
            cells = "".join(
                f"{row[role]['rps']:>{width}.2f} req/s{row[role]['power_w']:>8.0f} W"
                for role, width in (("prefill", 10), ("decode", 12))
            )
            click.echo(f"{row['cap_w']:>7.0f} W{cells}")
        click.echo()
