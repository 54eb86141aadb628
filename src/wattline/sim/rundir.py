"""The folder that a run leaves behind: recording, figures, report, scenario."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

import yaml

from wattline.core.errors import InputError, WattlineError
from wattline.sim.experiment import Experiment
from wattline.sim.report.html import write_report
from wattline.sim.report.tables import PageTable, PageWords
from wattline.sim.result import Run

_ALWAYS = frozenset({"results.json", "report.html", "scenario.yaml"})
"""A folder that holds all of these was made by us, and they may be replaced."""
_OURS = _ALWAYS | {"recording.jsonl.gz", "recording", "requests.jsonl", "logs"}


class RunFolder:
    """Collects files beside the target and puts them there at the end, all or none.

    A context manager; `path` None keeps nothing. A folder that holds something, but not an earlier
    run, is refused before any work is done; what others put beside an earlier run stays.
    """

    def __init__(self, path: Path | None) -> None:
        self._target = None if path is None else path.resolve()
        self._work: Path | None = None

    @property
    def recording(self) -> Path | None:
        """Where the recording goes; None when nothing is kept."""
        return None if self._work is None else self._work / "recording.jsonl.gz"

    @property
    def work(self) -> Path | None:
        """Where files are collected until the end; None when nothing is kept."""
        return self._work

    def __enter__(self) -> Self:
        target = self._target
        if target is None:
            return self
        try:
            held = {entry.name for entry in target.iterdir()} if target.exists() else set()
            if held and not held >= _ALWAYS:
                raise InputError("--out", str(target), "is not an earlier run: name a new folder")
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
        words: PageWords | None = None,
        tables: Sequence[PageTable] = (),
    ) -> None:
        """Write figures, report and scenario of finished runs; words and tables as there."""
        work = self._work
        assert work is not None
        scenario_yaml = yaml.safe_dump(
            experiment.scenario.model_dump(mode="json", exclude_defaults=True), sort_keys=False
        )
        (work / "scenario.yaml").write_text(scenario_yaml, encoding="utf-8")
        results = {"runs": [asdict(run.result) for run in runs]}
        (work / "results.json").write_text(
            json.dumps(results, indent=2, allow_nan=False) + "\n", "utf-8"
        )
        write_report(
            work / "report.html",
            title=f"{experiment.scenario.name}: {experiment.scenario.description}",
            runs=runs,
            scenario_yaml=scenario_yaml,
            notes=[*experiment.notes, *notes],
            command=command,
            words=words,
            tables=tables,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *rest: object
    ) -> None:
        work, target = self._work, self._target
        if work is None or target is None:
            return
        try:
            if kind is None:
                self._publish(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WattlineError(f"{target}: disk full: make room or name another folder")

    @staticmethod
    def _publish(work: Path, target: Path) -> None:
        work.chmod(0o755)  # a temporary folder is made for its owner alone
        if not target.exists():
            work.rename(target)
            return
        # Two renames: at any moment one whole run is there, under its name or beside it.
        earlier = work.with_name(f"{work.name}.earlier")
        target.rename(earlier)
        work.rename(target)
        for entry in earlier.iterdir():
            if entry.name not in _OURS:
                entry.rename(target / entry.name)
        shutil.rmtree(earlier)
