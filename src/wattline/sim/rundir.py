"""The folder that a run leaves behind: recording, figures, report, scenario."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

import yaml

from wattline.core.errors import InputError
from wattline.sim.experiment import Experiment
from wattline.sim.report.html import write_report
from wattline.sim.result import Run

MARK = "results.json"
"""Its presence says that a folder was made by us and may be replaced."""


class RunFolder:
    """Collects files beside the target and puts them there at the end, all or none.

    A context manager; `path` None keeps nothing. A folder that holds anything but an earlier run is
    refused before any work is done.
    """

    def __init__(self, path: Path | None) -> None:
        self._target = path
        self._work: Path | None = None

    @property
    def recording(self) -> Path | None:
        """Where the recording goes; None when nothing is kept."""
        return None if self._work is None else self._work / "recording.jsonl.gz"

    def __enter__(self) -> Self:
        target = self._target
        if target is None:
            return self
        try:
            if target.exists() and (
                not target.is_dir() or (any(target.iterdir()) and not (target / MARK).exists())
            ):
                raise InputError(
                    "--out", str(target), "exists and is not an earlier run: choose another folder"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            self._work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        except OSError as error:
            raise InputError(
                "--out", str(target), f"{error.strerror}: choose a folder that can be written"
            ) from error
        return self

    def write(
        self,
        runs: Sequence[Run],
        experiment: Experiment,
        command: str,
        notes: Sequence[str],
    ) -> None:
        """Write figures, report and scenario of finished runs."""
        work = self._work
        assert work is not None
        scenario_yaml = yaml.safe_dump(
            experiment.scenario.model_dump(mode="json", exclude_defaults=True), sort_keys=False
        )
        (work / "scenario.yaml").write_text(scenario_yaml, encoding="utf-8")
        results = {"runs": [asdict(run.result) for run in runs]}
        (work / MARK).write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", "utf-8")
        write_report(
            work / "report.html",
            title=f"{experiment.scenario.name}: {experiment.scenario.description}",
            runs=runs,
            scenario_yaml=scenario_yaml,
            notes=[*experiment.notes, *notes],
            command=command,
        )

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        work, target = self._work, self._target
        if work is None or target is None:
            return
        if kind is not None:
            shutil.rmtree(work, ignore_errors=True)
            return
        work.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        work.replace(target)
