"""`wattline profile show`: what profiling results hold, and how power caps change them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from wattline.catalog.profiles import Profile
    from wattline.core.engine import ForwardPass, PassCost
    from wattline.core.profile import ProfileEngine

_STEPS = 6


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--gpu", help="GPU product that was profiled: also show what power caps would do.")
@click.option("--model", help="With --gpu: the model; its shape splits each pass.")
@click.option(
    "--gpus-per-replica", type=click.IntRange(1, 1024), help="With --gpu: GPUs of the replica."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(
    path: Path, gpu: str | None, model: str | None, gpus_per_replica: int | None, as_json: bool
) -> None:
    """Show Dynamo's profiling results at PATH: a folder of NPZ or JSON files, or a planner `.npz`.

    Profiles hold latencies at one power limit and no watts. With --gpu the table says what the cap
    response of that product makes of them: this is what a `profile` engine computes with.

    \b
    Examples:
      wattline profile show profiling_results
      wattline profile show profiling_results --gpu H200 --model Qwen3-32B
    """  # noqa: D301  # click wants the backspace itself
    from wattline.catalog.profiles import read_profile
    from wattline.core.errors import InputError

    if gpu is None and (model is not None or gpus_per_replica is not None):
        raise InputError("--gpu", "not given", "--model and --gpus-per-replica belong to it")
    profile = read_profile(path)
    record = _record(path, profile)
    if gpu is not None:
        record["caps"] = _caps(profile, gpu, model, gpus_per_replica)
    if as_json:
        click.echo(json.dumps(record, indent=2, allow_nan=False))
    else:
        _print(record)


def _record(path: Path, profile: Profile) -> dict[str, Any]:
    record: dict[str, Any] = {"path": str(path), "form": profile.form, "gpus": profile.gpus}
    record["about"] = dict(profile.about)
    prefill = decode = None
    if profile.prefill_tokens:
        prefill = {
            "points": profile.points[0],
            "tokens": [profile.prefill_tokens[0], profile.prefill_tokens[-1]],
            "ttft_s": [min(profile.prefill_s), max(profile.prefill_s)],
            "power_w": None if profile.prefill_watts is None else profile.prefill_watts.watts,
        }
    if profile.decode:
        usage = [u for entry in profile.decode for u in entry.kv_usage]
        itl_s = [s for entry in profile.decode for s in entry.itl_s]
        decode = {
            "points": profile.points[1],
            "contexts": [entry.context_tokens for entry in profile.decode],
            "kv_usage": [min(usage), max(usage)],
            "itl_s": [min(itl_s), max(itl_s)],
            "max_kv_tokens": profile.max_kv_tokens,
            "power_w": None if profile.decode_watts is None else profile.decode_watts.watts,
        }
    return {**record, "prefill": prefill, "decode": decode}


def _caps(
    profile: Profile, gpu: str, model: str | None, gpus_per_replica: int | None
) -> dict[str, Any]:
    from wattline import catalog
    from wattline.core.fleet import Deployment, Pool, Role, Setting, Slo

    product = catalog.gpu(gpu)
    gpus = gpus_per_replica or profile.gpus or 1
    pool = Pool(
        name="profile",
        deployment="profile",
        role=Role.AGGREGATED,
        gpu=product.name,
        gpus=gpus,
        gpus_per_replica=gpus,
        min_replicas=0,
        max_replicas=1,
        startup_s=0.0,
    )
    deployment = None if model is None else Deployment(name="profile", model=model, slo=Slo(1, 1))
    engine = catalog.engine_profile(profile, pool, deployment)
    prompt, step = _passes(profile, engine)
    span_w = product.default_limit_w - product.min_limit_w
    rows = []
    for index in range(_STEPS):
        cap_w = round(product.default_limit_w - span_w * index / (_STEPS - 1), 1)
        row: dict[str, Any] = {"cap_w": cap_w, "prefill": None, "decode": None}
        for name, work in (("prefill", prompt), ("decode", step)):
            if work is not None:
                row[name] = _cost(engine.cost(work, Setting(cap_w)))
        rows.append(row)
    return {
        "gpu": product.name,
        "gpus_per_replica": gpus,
        "coverage": engine.coverage,
        "prompt_tokens": None if prompt is None else prompt.prefill_tokens,
        "decode_batch": None if step is None else step.decode_batch,
        "decode_kv_tokens": None if step is None else step.decode_kv_tokens,
        "rows": rows,
    }


def _passes(
    profile: Profile, engine: ProfileEngine
) -> tuple[ForwardPass | None, ForwardPass | None]:
    """The middle prompt, and a decode step at the middle context with the cache half full."""
    from wattline.core.engine import ForwardPass

    prompt = step = None
    if profile.prefill_tokens:
        tokens = max(1, round(profile.prefill_tokens[len(profile.prefill_tokens) // 2]))
        prompt = ForwardPass(tokens, tokens * (tokens + 1) / 2.0)
    if profile.decode:
        context = profile.decode[len(profile.decode) // 2].context_tokens
        batch = max(1, round(engine.kv_capacity_tokens / 2.0 / context))
        step = ForwardPass(decode_batch=batch, decode_kv_tokens=batch * context)
    return prompt, step


def _cost(cost: PassCost) -> dict[str, float]:
    return {"duration_s": cost.duration_s, "power_w": cost.power_w, "clock": cost.clock}


def _print(record: dict[str, Any]) -> None:
    gpus = "not stated" if record["gpus"] is None else str(record["gpus"])
    click.echo(f"{record['path']}: {record['form']}; GPUs per data-parallel rank: {gpus}")
    for key, value in record["about"].items():
        click.echo(f"  {key}: {value}")
    prefill, decode = record["prefill"], record["decode"]
    if prefill is None:
        click.echo("prefill: none")
    else:
        low, high = prefill["tokens"]
        click.echo(
            f"prefill: {prefill['points']} prompt lengths, {low:,.0f} to {high:,.0f} tokens; "
            f"TTFT {_range_ms(prefill['ttft_s'])}"
        )
    if decode is None:
        click.echo("decode: none")
    else:
        contexts = decode["contexts"]
        low, high = decode["kv_usage"]
        click.echo(
            f"decode: {decode['points']} points, contexts {contexts[0]:,.0f} to "
            f"{contexts[-1]:,.0f} tokens, cache use {low:.2f} to {high:.2f}; "
            f"ITL {_range_ms(decode['itl_s'])}; cache {decode['max_kv_tokens']:,} tokens"
        )
    known = [
        f"{half} {r['power_w']:g} W"
        for half, r in (("prefill", prefill), ("decode", decode))
        if r is not None and r["power_w"] is not None
    ]
    click.echo(f"watts: {', '.join(known) or 'none'}")
    if "caps" in record:
        _print_caps(record["caps"])


def _range_ms(pair: list[float]) -> str:
    return f"{pair[0] * 1e3:.3g} to {pair[1] * 1e3:.3g} ms"


def _print_caps(caps: dict[str, Any]) -> None:
    click.echo()
    click.echo(f"on {caps['gpus_per_replica']} x {caps['gpu']}; {caps['coverage']}")
    heads = []
    if caps["prompt_tokens"] is not None:
        heads.append(f"prompt of {caps['prompt_tokens']:,} tokens")
    if caps["decode_batch"] is not None:
        held = caps["decode_kv_tokens"]
        heads.append(f"decode of {caps['decode_batch']:,} over {held:,.0f} tokens")
    click.echo(f"{'cap':>7}" + "".join(f"{head:>40}" for head in heads))
    for row in caps["rows"]:
        cells = [row[name] for name in ("prefill", "decode") if row[name] is not None]
        click.echo(f"{row['cap_w']:>5.0f} W" + "".join(map(_cell, cells)))


def _cell(cell: dict[str, float]) -> str:
    return f"{cell['duration_s'] * 1e3:>22.4g} ms{cell['power_w']:>8.0f} W {cell['clock']:>4.0%}"
