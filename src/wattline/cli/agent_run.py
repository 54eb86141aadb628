"""Wiring of `wattline agent run` and `check`: driver, sources, loop, servers and signals."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from wattline.agent import takeover
from wattline.agent.grant_source import FileGrantSource
from wattline.agent.http import Face, Servers
from wattline.agent.logs import configure
from wattline.agent.loop import Agent, lease_clock
from wattline.agent.metrics import exposition
from wattline.agent.settings import AgentSettings
from wattline.agent.snapshot import Mode
from wattline.core.errors import WattlineError
from wattline.drivers.gpu.device import GpuDevice, GpuDriver, GpuError
from wattline.drivers.gpu.open import open_driver
from wattline.drivers.kube.api import KubeError, KubeFault, connect
from wattline.drivers.kube.pods import KubePods
from wattline.drivers.kube.slices import ResourceSlices
from wattline.drivers.kubelet.devices import ClaimedGpus, GpuResolver
from wattline.drivers.kubelet.pod_resources import PodResources
from wattline.drivers.kubelet.processes import ProcessOwners
from wattline.drivers.kubelet.select import OwnersByKubelet
from wattline.drivers.pods import OwnerMethod, OwnerSource, PodSource, SourceError
from wattline.drivers.pods_file import OwnersFile, PodsFile

if TYPE_CHECKING:
    from wattline.agent.check import Sources

log = logging.getLogger(__name__)

_LEAST_STALE_S = 10.0
_STALE_READINGS = 5
"""So many missed readings mean a loop that is dead; a hung GPU has no part in it."""


class Lookups:
    """The owners' thread's own view of GPUs: ids of parts, and processes.

    A device is for one thread at a time, and the loop's are the lanes'. Opened when first needed:
    with whole GPUs by PodResources it never is. Looked at anew after `fresh_s`.
    """

    def __init__(self, opened: Callable[[], GpuDriver], fresh_s: float = 1.0) -> None:
        self._opened = opened
        self._fresh_s = fresh_s
        self._driver: GpuDriver | None = None
        self._parents: Mapping[str, str] = {}
        self._parents_s: float | None = None

    def parents(self) -> Mapping[str, str]:
        """GPU UUID by what a device plugin may name instead: MIG UUID, or index. SourceError."""
        now_s = time.monotonic()
        if self._parents_s is None or now_s - self._parents_s > self._fresh_s:
            try:
                found: dict[str, str] = {}
                for device in self._devices():
                    uuid = device.identity.uuid
                    found |= {str(device.identity.index): uuid}
                    found |= dict.fromkeys(device.mig_uuids(), uuid)
            except GpuError as error:
                raise SourceError(f"parts of GPUs: {error}") from error
            self._parents, self._parents_s = found, now_s
        return self._parents

    def pids(self) -> Mapping[str, Sequence[int] | GpuError]:
        """Host process ids by GPU UUID, or how that GPU's list failed. GpuError: there are none."""
        found: dict[str, Sequence[int] | GpuError] = {}
        for device in self._devices():
            try:
                found[device.identity.uuid] = [process.pid for process in device.processes()]
            except GpuError as error:
                found[device.identity.uuid] = error
        return found

    def close(self) -> None:
        """Let go of the library, if it was opened."""
        if self._driver is not None:
            self._driver.close()

    def _devices(self) -> Sequence[GpuDevice]:
        if self._driver is None:
            self._driver = self._opened()
        return self._driver.enumerate()


class _Owners:
    """`OwnersByKubelet` together with the lookups that it stands on."""

    def __init__(self, inner: OwnersByKubelet, lookups: Lookups) -> None:
        self._inner = inner
        self._lookups = lookups
        self.owners = inner.owners

    def close(self) -> None:
        self._inner.close()
        self._lookups.close()


def open_gpus(settings: AgentSettings) -> GpuDriver:
    """The driver that the settings name."""
    return open_driver(settings.driver, dcgm_host=settings.dcgm_host, dcgm_port=settings.dcgm_port)


def open_owners(settings: AgentSettings) -> OwnerSource:
    """Who holds which GPU, as the settings say."""
    if settings.owners != "auto":
        return OwnersFile(Path(settings.owners.removeprefix("file:")))
    # Process lists and MIG ids are NVML's, whichever library writes the limits.
    library = "simulated" if settings.driver == "simulated" else "nvml"
    lookups = Lookups(lambda: open_driver(library))
    claims = None
    if settings.pod_source == "kube":
        claims = ClaimedGpus(ResourceSlices(lambda: connect(settings.kubeconfig), settings.node))
    listed = PodResources(GpuResolver(lookups.parents, claims), settings.kubelet_socket)
    by_process = ProcessOwners(lookups.pids, settings.proc_root)
    inner = OwnersByKubelet(settings.kubelet_socket, listed, by_process)
    if inner.method is OwnerMethod.POD_RESOURCES:
        listed.load()
    log.info("owners of GPUs", extra={"method": inner.method.value, "why": inner.reason})
    return _Owners(inner, lookups)


def open_pods(settings: AgentSettings, on_change: Callable[[], None]) -> PodSource | None:
    """This node's pods, as the settings say; None: none are needed."""
    source = settings.pod_source
    if source == "none":
        return None
    if source == "kube":
        api = connect(settings.kubeconfig)
        return KubePods(api, settings.node, on_change, namespace=settings.namespace)
    return PodsFile(Path(source.removeprefix("file:")), on_change)


def sources_to_check(settings: AgentSettings) -> Sources:
    """What `check` tries: the same parts as those of `run`."""
    from wattline.agent.check import Sources

    def pods() -> PodSource:
        source = open_pods(settings, lambda: None)
        assert source is not None
        return source

    def claims() -> int | None:
        try:
            return len(ResourceSlices(lambda: connect(settings.kubeconfig), settings.node)())
        except KubeError as error:
            if error.fault is KubeFault.ABSENT:
                return None
            raise

    return Sources(
        driver=lambda: open_gpus(settings),
        owners=lambda: open_owners(settings),
        pods=None if settings.pod_source == "none" else pods,
        claims=claims if settings.pod_source == "kube" else None,
    )


class _RivalWatch:
    """Looks at the names of pods for Dynamo's agent: refused at the first listing, said later.

    Who comes first stays: an agent that manages the node does not give way to one that is deployed
    beside it. Its writes are then a rival's.
    """

    def __init__(self, settings: AgentSettings, refuse: Callable[[str], None]) -> None:
        self._settings = settings
        self._refuse = refuse
        self._listed = False
        self._known: set[str] = set()

    def look(self, pods: PodSource) -> None:
        found = set(takeover.rival_pods(pods.pods()))
        first, self._listed = not self._listed, True
        new, self._known = found - self._known, found
        if new and first and not self._settings.take_over:
            self._refuse(takeover.refusal(sorted(new)))
        elif new:
            log.error("a Dynamo Power Agent is on this node", extra={"signs": sorted(new)})


def run_agent(settings: AgentSettings, origins: Mapping[str, str]) -> None:
    """Run until a signal ends it. Raises WattlineError when it cannot start or is refused."""
    configure(settings.log_format, settings.log_level)
    given = {name: str(getattr(settings, name)) for name in origins if origins[name] != "default"}
    log.info("settings", extra={"audit": True, **{f"set_{k}": v for k, v in given.items()}})
    _make_state_dir(settings.state_dir)
    driver = open_gpus(settings)
    _meet_rival(settings, driver)
    refusals: list[str] = []

    def pods_changed() -> None:
        if pods is not None:
            rivals.look(pods)
        agent.pods_changed()

    def refuse(why: str) -> None:
        refusals.append(why)
        agent.stop()

    rivals = _RivalWatch(settings, refuse)
    pods = open_pods(settings, pods_changed)
    agent = Agent(
        settings,
        driver,
        grants=_grants(settings),
        pods=pods,
        owners=open_owners(settings),
    )
    face = Face(
        snapshot=lambda: agent.snapshot,
        metrics=exposition(lambda: agent.snapshot, lease_clock),
        submit=agent.submit,
        stale_s=max(_LEAST_STALE_S, _STALE_READINGS * settings.readback_s),
        now=lease_clock,
    )
    servers = Servers(
        face,
        listen=settings.listen,
        token_file=settings.token_file,
        control_socket=settings.control_socket,
    )
    log.info("listening", extra={"address": servers.address, "control": settings.control_socket})
    _handle_signals(agent)
    try:
        agent.run()
    finally:
        servers.close()
    if refusals:
        raise WattlineError(refusals[0])


def _grants(settings: AgentSettings) -> FileGrantSource | None:
    granted = settings.mode is Mode.GRANTS
    if not granted and settings.brake_file is None:
        return None
    return FileGrantSource(
        settings.grants if granted else None,
        node=settings.node,
        brake_file=settings.brake_file,
        poll_s=settings.grants_poll_s,
        now=lease_clock,
    )


def _make_state_dir(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise WattlineError(
            f"state_dir {path}: {error.strerror or error}: give a directory of the agent's own"
        ) from error


def _meet_rival(settings: AgentSettings, driver: GpuDriver) -> None:
    """Refuse a Dynamo Power Agent, or take its GPUs over; its pods are looked at once listed."""
    rival = takeover.find(settings)
    if not settings.take_over:
        takeover.refuse(rival)
        return
    for sign in rival.running:
        log.warning("the Dynamo Power Agent still runs: end it", extra={"sign": sign})
    for line in takeover.take_over(settings, driver):
        log.info("taken over", extra={"audit": True, "what": line})


def _handle_signals(agent: Agent) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        agent.stop()

    def brake(number: int, frame: FrameType | None) -> None:
        agent.call_brake("signal", signal.Signals(number).name)

    def again(number: int, frame: FrameType | None) -> None:
        agent.look_again()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGUSR1, brake)
    signal.signal(signal.SIGHUP, again)
