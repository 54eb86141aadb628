"""Why the agent is not ready: what stands in the way of its work now, one line each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from wattline.agent.gpus import GpuEntry
from wattline.agent.grant_source import GrantSource
from wattline.agent.granted import GrantedLimits
from wattline.agent.owner_watch import OwnersSeen
from wattline.drivers.pods import PodSource


def of_gpus(entries: Iterable[GpuEntry], *, listed: bool, error: str | None) -> Iterator[str]:
    """What is missing of the GPUs. listed: they once were; error: why they cannot be now."""
    entries = list(entries)
    if error is not None:
        yield f"GPUs cannot be listed: {error}"
    elif not listed:
        yield "GPUs have not been listed yet"
    elif not entries:
        yield "no GPU on this node"
    for entry in entries:
        if not entry.known:
            yield f"GPU {entry.uuid} has not been read yet"


def of_grants(granted: GrantedLimits, source: GrantSource | None, now_s: float) -> Iterator[str]:
    """What is wrong with the grants, and since when; those obeyed before stay in force."""
    refused = f"for {now_s - granted.refused_s:.0f} s: {granted.refusal}"
    if not granted.read:
        yield "no grants have been read yet" + (f", {refused}" if granted.refusal else "")
    elif granted.refusal is not None:
        last = _last_good(None if source is None else source.age_s())
        yield f"the newest grants are refused ({last}) {refused}"


def of_brake_file(source: GrantSource | None) -> Iterator[str]:
    """A brake file that cannot be looked at: nobody could call the brake by it."""
    trouble = None if source is None else source.brake_trouble()
    if trouble is not None:
        yield f"the brake file cannot be looked at: {trouble}"


def of_owners(
    seen: OwnersSeen | None, pods: PodSource | None, owners_age_s: float | None
) -> Iterator[str]:
    """What is wrong with the pods and with who holds which GPU; limits stay as they are."""
    if seen is None:
        yield "pods and their GPUs have not been listed yet"
        return
    trouble = seen.pods_error
    if trouble is None and pods is not None:
        trouble = pods.trouble()
    if trouble is not None:
        age_s = None if pods is None else pods.age_s()
        yield f"pods cannot be listed ({_last_good(age_s)}): {trouble}"
    if seen.joined is None:
        yield f"owners of GPUs cannot be told ({_last_good(owners_age_s)}): {seen.owners_error}"
    else:
        for line in seen.joined.unresolved:
            yield f"a device belongs to no known GPU: {line}"
        for uuid, why in seen.joined.untold.items():
            yield f"owners of GPU {uuid} cannot be told: {why}"


def _last_good(age_s: float | None) -> str:
    return "never good yet" if age_s is None else f"last good {age_s:.0f} s ago"
