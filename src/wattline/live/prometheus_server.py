"""A real Prometheus on loopback that scrapes the processes of a live stack."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

MISSING = (
    "no `prometheus` on PATH: it goes on without history; "
    "install it, as by `apt install prometheus`, or put the binary on PATH"
)
_TARGETS = "targets.json"


def find_binary() -> str | None:
    """The binary on PATH; None: there is none, and `MISSING` says what to do."""
    return shutil.which("prometheus")


def write_config(folder: Path, jobs: Mapping[str, Sequence[str]], scrape_s: float) -> Path:
    """Write its configuration: jobs with fixed addresses, and a file of workers that come and go.

    Addresses are `HOST:PORT`. `write_targets` fills that file, which Prometheus watches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_targets(folder, {})
    scrapes: list[dict[str, object]] = [
        {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
        for job, addresses in jobs.items()
    ]
    scrapes.append(
        {
            "job_name": "workers",
            "file_sd_configs": [{"files": [_TARGETS], "refresh_interval": "5s"}],
        }
    )
    document = {
        "global": {"scrape_interval": f"{scrape_s:g}s", "scrape_timeout": f"{scrape_s:g}s"},
        "scrape_configs": scrapes,
    }
    path = folder / "prometheus.yml"
    path.write_text(json.dumps(document, indent=2))  # JSON is YAML
    return path


def write_targets(folder: Path, workers: Mapping[str, Sequence[str]]) -> None:
    """Name the workers of the moment: addresses per pool."""
    document = [
        {"targets": list(addresses), "labels": {"pool": pool}}
        for pool, addresses in workers.items()
        if addresses
    ]
    partial = folder / "targets.partial"
    partial.write_text(json.dumps(document))
    partial.replace(folder / _TARGETS)


def command(binary: str, config: Path, address: str) -> list[str]:
    """Its argv; the data lies beside the configuration."""
    return [
        binary,
        f"--config.file={config}",
        f"--storage.tsdb.path={config.parent / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
