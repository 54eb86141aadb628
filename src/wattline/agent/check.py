"""`wattline agent check`: what the agent could and could not do on this node. Writes nothing."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from wattline.agent import takeover
from wattline.agent.settings import AgentSettings, address_of, check_whole
from wattline.agent.snapshot import Mode
from wattline.core.errors import InputError, WattlineError
from wattline.drivers.gpu.device import GpuDevice, GpuDriver, GpuError
from wattline.drivers.grant_files import MAX_GRANT_BYTES, decode_grants
from wattline.drivers.http_server import read_token
from wattline.drivers.pods import OwnerMethod, OwnerSource, Pod, PodSource, SourceError
from wattline.drivers.trusted_files import read_trusted

CAP_SYS_ADMIN = 21
"""Bit of the capability; source: linux/capability.h."""
LEAST_FREE_BYTES = 1 << 20
_NOT_SET_S = 1_700_000_000.0
PODS_S = 10.0
"""How long the first listing of pods may take."""


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Row:
    """One finding. `remedy`: what to do about it; empty where there is nothing to do."""

    level: Level
    about: str
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What is to be tried; each is called inside its own check, so that a failure is a finding.

    pods: None: this configuration needs none. claims: reads this node's ResourceSlices and gives
    the number of GPUs and instances in them; None where the cluster has no such kind.
    """

    driver: Callable[[], GpuDriver]
    owners: Callable[[], OwnerSource]
    pods: Callable[[], PodSource] | None
    claims: Callable[[], int | None] | None


def check(settings: AgentSettings, sources: Sources) -> list[Row]:
    """All findings, in the order in which a person would look."""
    rows = [*_settings(settings), *_state_dir(settings), *_grants(settings)]
    rows += [*_files(settings), *_listen(settings)]
    driver: GpuDriver | None = None
    try:
        driver = sources.driver()
        rows += _gpus(driver.enumerate(), settings)
        remedy = "look at `dmesg` for Xid; reset or drain it"
        rows += [Row(Level.FAIL, "gpus", line, remedy) for line in driver.unreachable]
    except WattlineError as error:
        rows.append(Row(Level.FAIL, "gpu library", str(error)))
    try:
        rows += _capability(settings)
        rows += _owners(settings, sources.owners)
    finally:
        if driver is not None:
            driver.close()
    pods: Sequence[Pod] = ()
    if sources.pods is not None:
        found, pods = _pods(settings, sources.pods)
        rows.append(found)
    if sources.claims is not None:
        rows.append(_claims(sources.claims))
    rows += _rival(settings, pods)
    rows += _clock()
    return rows


def _settings(settings: AgentSettings) -> Iterator[Row]:
    try:
        check_whole(settings)
    except InputError as error:
        yield Row(Level.FAIL, "settings", str(error))


def _state_dir(settings: AgentSettings) -> Iterator[Row]:
    path, about = settings.state_dir, "state directory"
    exists = path.is_dir()
    if path.exists() and not exists:
        yield Row(Level.FAIL, about, f"{path} is no directory", "give another --state-dir")
        return
    folder = path if exists else next(parent for parent in path.parents if parent.is_dir())
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Row(Level.FAIL, about, f"{folder} is not writable", "mount it writable, or chown it")
        return
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    if free < LEAST_FREE_BYTES or (space.f_files and not space.f_favail):
        yield Row(Level.FAIL, about, f"{folder} has {free} bytes free", "free the disk")
        return
    mode = folder.stat().st_mode
    if exists and mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Row(
            Level.FAIL, about, f"{path} is {stat.filemode(mode)}", "others may write: chmod 700"
        )
        return
    made = "writable" if exists else "not there yet: `run` makes it"
    yield Row(Level.OK, about, f"{path}: {made}, {free >> 20} MiB free")


def _grants(settings: AgentSettings) -> Iterator[Row]:
    if settings.mode is not Mode.GRANTS or settings.grants is None:
        return
    path = settings.grants
    if path.is_dir():
        path = path / f"{settings.node}.json"
    try:
        content = read_trusted(path, max_bytes=MAX_GRANT_BYTES)
        grants = decode_grants(content, node=settings.node, where=str(path))
    except FileNotFoundError:
        remedy = "the coordinator writes it; until then every limit stays as it is"
        yield Row(Level.WARN, "grants", f"{path} is not there", remedy)
    except (WattlineError, OSError) as error:
        yield Row(Level.FAIL, "grants", str(error), "have the coordinator write it anew")
    else:
        yield Row(Level.OK, "grants", f"{path}: {len(grants.grants)} grants, epoch {grants.epoch}")


def _files(settings: AgentSettings) -> Iterator[Row]:
    if settings.token_file is not None:
        try:
            read_token(settings.token_file)
        except InputError as error:
            yield Row(Level.FAIL, "token", str(error), "`openssl rand -hex 32` makes one")
        else:
            yield Row(Level.OK, "token", f"{settings.token_file} has one")
    brake = settings.brake_file
    if brake is not None and not os.access(brake.parent, os.R_OK | os.X_OK):
        found = f"{brake.parent} cannot be looked into"
        yield Row(Level.FAIL, "brake file", found, "mount it, or leave --brake-file out")
    elif brake is not None and brake.exists():
        yield Row(Level.WARN, "brake file", f"{brake} is there", "the node would brake at once")
    elif brake is not None:
        yield Row(Level.OK, "brake file", f"{brake} is not there: no brake")


def _listen(settings: AgentSettings) -> Iterator[Row]:
    host, port = address_of(settings.listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            found = f"{settings.listen}: {error.strerror or error}"
            remedy = "give another --listen, unless it is this agent that runs already"
            yield Row(Level.WARN, "listen", found, remedy)
        else:
            yield Row(Level.OK, "listen", f"{settings.listen} is free")


def _gpus(devices: Sequence[GpuDevice], settings: AgentSettings) -> Iterator[Row]:
    if not devices:
        remedy = "give the container the node's GPUs: docs/reference/agent-permissions.md"
        yield Row(Level.FAIL, "gpus", "none seen", remedy)
    for device in devices:
        who = f"gpu {device.identity.index}"
        try:
            yield from _gpu(who, device, settings)
        except GpuError as error:
            yield Row(Level.FAIL, who, str(error), "look at `dmesg` for Xid; reset or drain it")


def _gpu(who: str, device: GpuDevice, settings: AgentSettings) -> Iterator[Row]:
    limits = device.range()
    enforced_w, requested_w = device.enforced_w(), device.requested_w()
    shown = ", ".join(
        f"{name} {'unknown' if watts is None else f'{watts:.0f} W'}"
        for name, watts in (
            ("enforced", enforced_w),
            ("requested", requested_w),
            ("default", device.default_w()),
            ("draw", device.draw_w()),
        )
    )
    product = f"{device.identity.product} {device.identity.uuid}"
    span = f"{limits.min_w:.0f}-{limits.max_w:.0f} W"
    yield Row(Level.OK, who, f"{product}: {span}, {shown}")
    if requested_w is not None and abs(enforced_w - requested_w) > 1.0:
        found = f"enforced {enforced_w:.0f} W, requested {requested_w:.0f} W"
        yield Row(Level.WARN, who, found, "an out-of-band limit (BMC) holds it down")
    for name, watts in (("safe default", settings.safe_default_w), ("brake", settings.brake_w)):
        if watts is not None and not limits.min_w <= watts <= limits.max_w:
            found = f"{name} {watts:.0f} W is out of {span}"
            yield Row(Level.WARN, who, found, "it would be brought into the range")
    if device.persistence_mode() is False:
        remedy = "run nvidia-persistenced, or `nvidia-smi -pm 1`"
        yield Row(
            Level.WARN, who, "persistence mode is off: when idle its limit may be lost", remedy
        )
    if device.mig_enabled():
        remedy = "pods on its instances share it: one value for all, or the safe default"
        yield Row(Level.WARN, who, "MIG is on: one limit for all its instances", remedy)


def _capability(settings: AgentSettings) -> Iterator[Row]:
    if settings.driver != "nvml":
        found = f"{settings.driver}: limits are not written by this process' own rights"
        yield Row(Level.OK, "permission", found)
        return
    if has_capability(CAP_SYS_ADMIN):
        yield Row(Level.OK, "permission", "CAP_SYS_ADMIN is effective")
    else:
        remedy = "run as root, or add the capability SYS_ADMIN: limits cannot be written without"
        yield Row(Level.FAIL, "permission", "CAP_SYS_ADMIN is missing", remedy)


def has_capability(bit: int, status: Path = Path("/proc/self/status")) -> bool:
    """Whether this process has a capability in its effective set."""
    for line in status.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value.strip(), 16) >> bit & 1)
    return False


def _owners(settings: AgentSettings, make: Callable[[], OwnerSource]) -> Iterator[Row]:
    about = "owners"
    try:
        source = make()
        try:
            ownership = source.owners()
        finally:
            source.close()
    except (WattlineError, OSError) as error:
        remedy = "mount the kubelet's pod-resources directory, or name --kubelet-socket"
        level = Level.FAIL if settings.mode is Mode.ANNOTATIONS else Level.WARN
        yield Row(level, about, str(error), remedy)
        return
    found = f"by {ownership.method}: {len(ownership.pods)} GPUs are held"
    if ownership.method is OwnerMethod.PROCESSES:
        remedy = "pods are seen once they compute, and only with the host's processes in sight"
        missing = f"{found}; no socket {settings.kubelet_socket}"
        yield Row(Level.WARN, about, missing, remedy)
    else:
        yield Row(Level.OK, about, found)
    for line in ownership.unresolved:
        yield Row(Level.WARN, about, line, "its GPU counts as held by nobody")
    for uuid, why in ownership.untold.items():
        found = f"GPU {uuid}: {why}"
        yield Row(Level.WARN, about, found, "its limit stays as it is until that works")


def _pods(settings: AgentSettings, make: Callable[[], PodSource]) -> tuple[Row, Sequence[Pod]]:
    """The first listing, waited for; the watch behind it is ended again."""
    about = "pods"
    remedy = "apply deploy/agent/rbac.yaml, or look at --kubeconfig"
    try:
        source = make()
    except WattlineError as error:
        return Row(Level.FAIL, about, str(error), remedy), ()
    source.start()
    try:
        end_s = time.monotonic() + PODS_S
        while True:
            try:
                pods = source.pods()
                break
            except SourceError as error:
                if time.monotonic() > end_s:
                    return Row(Level.FAIL, about, str(error), remedy), ()
                time.sleep(0.1)
    finally:
        source.stop()
    annotated = sum(pod.limit is not None for pod in pods)
    found = f"{len(pods)} on {settings.node}, {annotated} annotated"
    return Row(Level.OK, about, f"{settings.pod_source}: {found}"), pods


def _claims(read: Callable[[], int | None]) -> Row:
    about = "claimed devices"
    try:
        devices = read()
    except WattlineError as error:
        remedy = "apply deploy/agent/rbac.yaml; matters only for GPUs held through DRA claims"
        return Row(Level.WARN, about, str(error), remedy)
    if devices is None:
        return Row(Level.OK, about, "this cluster has no ResourceSlices")
    return Row(Level.OK, about, f"{devices} in this node's ResourceSlices")


def _rival(settings: AgentSettings, pods: Sequence[Pod]) -> Iterator[Row]:
    rival = takeover.find(settings, pods)
    if not rival:
        yield Row(Level.OK, "dynamo power agent", "none seen")
    for line in rival.lines():
        if settings.take_over:
            yield Row(Level.WARN, "dynamo power agent", line, "its GPUs would be taken over")
        else:
            yield Row(Level.FAIL, "dynamo power agent", line, "remove it, or give --take-over")


def _clock() -> Iterator[Row]:
    """Leases run on a clock that no one sets; the wall clock is for TLS and for the audit only."""
    if time.time() < _NOT_SET_S:
        remedy = "start time synchronisation: the API server's certificate cannot be checked"
        yield Row(Level.WARN, "clock", "the wall clock was never set", remedy)
    else:
        asleep_s = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        found = f"leases run on CLOCK_BOOTTIME, {max(asleep_s, 0.0):.0f} s of sleep in it"
        yield Row(Level.OK, "clock", found)
