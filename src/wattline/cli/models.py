"""`wattline models`: GPU products and language models with their sources, and the cap response."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click


@click.group()
def models() -> None:
    """Show GPU products, language models, and how both answer power caps.

    \b
    Examples:
      wattline models list
      wattline models show H200
      wattline models show openai/gpt-oss-120b
      wattline models show ./my-model          a directory with a config.json
      wattline models cap-response             published against modelled
    """  # noqa: D301  # click wants the backspace itself


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(as_json: bool) -> None:
    """List GPU products and language models."""
    from wattline import catalog

    products = [catalog.gpu(name) for name in catalog.gpu_names()]
    specs = [catalog.model(name) for name in catalog.model_names()]
    if as_json:
        _print_json({"gpus": [asdict(p) for p in products], "models": [asdict(s) for s in specs]})
        return
    click.echo(f"{'GPU product':<18}{'architecture':<14}{'watts':>14}{'memory':>9}  parameters")
    for product in products:
        limits = f"{product.min_limit_w:.0f}-{product.max_limit_w:.0f} W"
        coverage = catalog.fit(product.name).coverage
        click.echo(
            f"{product.name:<18}{product.architecture:<14}{limits:>14}"
            f"{product.hbm_bytes / 1e9:>6.0f} GB  {coverage}"
        )
    click.echo()
    click.echo(f"{'model':<24}{'kind':<8}{'parameters':>12}{'active':>10}  weights")
    for spec in specs:
        click.echo(
            f"{spec.name:<24}{spec.architecture:<8}{spec.params / 1e9:>10.1f} B"
            f"{spec.active_params / 1e9:>8.1f} B  {spec.precision}"
        )


@models.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """Show a GPU product or a model with the source of each number.

    NAME is a name or alias of either, or a directory (or file) with a Hugging Face config.json.
    """
    from wattline.catalog.products import gpu_file
    from wattline.core.errors import InputError

    try:
        product = gpu_file(name)
    except InputError:
        _show_model(name, as_json)
        return
    if as_json:
        _print_json(product.model_dump(exclude_none=True))
        return
    for field, value in product.model_dump(exclude_none=True).items():
        _print_field(field, value)


def _show_model(name: str, as_json: bool) -> None:
    from wattline.catalog.files import unknown_name
    from wattline.catalog.products import gpu_names
    from wattline.catalog.specs import model, model_file, model_names
    from wattline.core.errors import InputError

    try:
        spec = model(name)
    except InputError as error:
        if error.where != "model":  # a config.json that cannot be used
            raise
        names = (*gpu_names(), *model_names())
        raise unknown_name("GPU product or model", name, names) from error
    try:
        file = model_file(name)
        source = file.config_source
        published: Any = file.published_params.model_dump()
    except InputError:
        source, published = name, None
    if as_json:
        _print_json({**asdict(spec), "source": source, "published_params": published})
        return
    for field, value in asdict(spec).items():
        click.echo(f"{field:<26}{value if value is not None else 'the same'}")
    click.echo(f"{'source':<26}{source}")
    if published:
        _print_field("published_params", published)


@models.command("cap-response")
@click.option("--markdown", is_flag=True, help="Print the page of the documentation.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cap_response(markdown: bool, as_json: bool) -> None:
    """Compare the modelled answer to power caps with what is published."""
    from wattline.cli import cap_response_page as page

    if as_json:
        _print_json(page.document())
    elif markdown:
        click.echo(page.markdown(), nl=False)
    else:
        click.echo(page.plain(), nl=False)


def _print_field(field: str, value: Any) -> None:
    if isinstance(value, dict) and "source" in value:
        click.echo(f"{field:<26}{value['value']:<14.6g}{value['unit']:<10}{value['source']}")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _print_field(f"{field}.{key}", inner)
    elif isinstance(value, tuple):
        click.echo(f"{field:<26}{', '.join(value)}")
    else:
        click.echo(f"{field:<26}{value}")


def _print_json(document: object) -> None:
    click.echo(json.dumps(document, indent=2, allow_nan=False))
