"""One HTML file that shows runs and needs nothing but a browser: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from wattline import __version__
from wattline.sim.report import sections, text
from wattline.sim.report.series import drawn_events, pack_run, points_per_run
from wattline.sim.report.tables import PageTable, PageWords
from wattline.sim.result import Run, RunResult


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    runs: Sequence[Run],
    scenario_yaml: str,
    notes: Sequence[str],
    command: str,
    words: PageWords | None = None,
    tables: Sequence[PageTable] = (),
) -> None:
    """Write the report of `runs` (at least one) to `path`; it appears whole or not at all.

    The same arguments give the same bytes: `wall_s` of the results is not shown. ValueError if
    there are no runs, OSError if the file cannot be written.
    """
    page = render_report(
        title=title,
        runs=runs,
        scenario_yaml=scenario_yaml,
        notes=notes,
        command=command,
        words=words,
        tables=tables,
    )
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(page)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def render_report(
    *,
    title: str,
    runs: Sequence[Run],
    scenario_yaml: str,
    notes: Sequence[str],
    command: str,
    words: PageWords | None = None,
    tables: Sequence[PageTable] = (),
) -> str:
    """Build the whole page as one string; ValueError if there are no runs.

    `words` replace the sentences on which policy answered best; `tables` stand before the plots.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    results = [run.result for run in runs]
    lead = sections.lead_run(results)
    reference = sections.reference_run(results, lead)
    styles = _asset("vendor/uplot/uPlot.min.css") + "\n" + _asset("templates/report.css")
    library = _asset("vendor/uplot/uPlot.iife.min.js")
    script = _asset("templates/report.js")
    page = Template(_asset("templates/report.html"))
    return page.substitute(
        policy=escape(_content_policy(styles, [library, script])),
        title=escape(title),
        version=escape(__version__),
        styles=styles,
        library=library,
        library_licence=_asset("vendor/uplot/LICENSE"),
        script=script,
        subtitle=escape(sections.subtitle(runs) if words is None else words.subtitle),
        headline=escape(sections.headline(runs) if words is None else words.headline),
        lead=escape(sections.run_label(results[lead], results)),
        tiles=sections.tile_list(
            sections.tiles(runs[lead], None if reference is None else results[reference]), "tiles"
        ),
        figures=_figures(results) if words is None else "",
        tables="".join(table.html() for table in tables),
        table=sections.table(results),
        definitions=sections.definitions(),
        exposures=sections.exposures(runs[lead], sections.run_label(results[lead], results)),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
        scenario=escape(scenario_yaml),
        command=escape(command),
        data=_data(runs, lead, reference),
    )


def _asset(name: str) -> str:
    return files("wattline.sim.report").joinpath(name).read_text(encoding="utf-8")


def _content_policy(styles: str, scripts: Sequence[str]) -> str:
    """Forbid every load from outside; only the page's own style and scripts, by hash."""
    allowed = " ".join(_digest(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_digest(styles)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _figures(results: Sequence[RunResult]) -> str:
    """Goodput and energy per token by policy and budget; nothing for a single run."""
    if len(results) == 1:
        return ""
    goodput = sections.bars(results, "goodput_rps", lambda r: text.percent(r.slo_attainment))
    per_token = sections.bars(results, "j_per_token", lambda r: text.energy(r.energy_j))
    few = "few" if len({r.budget_w for r in results}) == 1 else ""
    return (
        f'<div class="figures {few}"><section id="goodput"><h2>Goodput by policy and budget</h2>'
        '<p class="unit">Requests per second within both targets, and their share of all.</p>'
        f"{goodput}</section>"
        '<section id="energy"><h2>Energy by policy and budget</h2><p class="unit">Joules per '
        "output token, and all energy of the run.</p>"
        f"{per_token}</section></div>{_TONES}"
    )


_TONES = (
    '<p class="tones"><span class="bar own"><i></i>wattline</span>'
    '<span class="bar plain"><i></i>other policies</span>'
    '<span class="bar bound"><i></i>set with hindsight: a bound</span>'
    '<span class="bar broke"><i></i>did not hold the budget</span></p>'
)


def _data(runs: Sequence[Run], lead: int, reference: int | None) -> str:
    """Everything the script draws, as JSON that cannot end its own script element."""
    results = [run.result for run in runs]
    points = points_per_run(runs)
    kinds: list[str] = []
    texts: dict[str, int] = {}
    packed: list[dict[str, Any]] = []
    for run in runs:
        events = []
        for event in drawn_events(run.series.events):
            if event.kind not in kinds:
                kinds.append(event.kind)
            number = texts.setdefault(event.text, len(texts))
            ws = None if event.exposure_ws is None else round(event.exposure_ws, 1)
            events.append([round(event.time_s, 1), kinds.index(event.kind), number, ws])
        packed.append(
            {
                "policy": run.result.policy,
                "budget": sections.budget_label(run.result),
                "budget_w": run.result.budget_w,
                "label": sections.run_label(run.result, results),
                "tone": sections.tone(run.result),
                "tiles": sections.tiles(run, None),
                "event_count": len(run.series.events),
                "events": events,
                "steps": len(run.series.time_s),
                "step_s": run.series.step_s,
                **pack_run(run, points),
            }
        )
    document = {
        "runs": packed,
        "kinds": kinds,
        "texts": list(texts),
        "lead": lead,
        "reference": reference,
    }
    encoded = json.dumps(document, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
