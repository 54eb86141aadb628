"""The agent's settings: one flat tree, read from flags over environment over file."""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from typing import Any

from wattline.agent.snapshot import Mode
from wattline.core.errors import InputError
from wattline.drivers.gpu.open import WHOLE_WATTS

ENV_PREFIX = "WATTLINE_AGENT_"
CONFIG_ENV = "WATTLINE_AGENT_CONFIG"
"""Names the file itself, so it is no setting of its own."""
MAX_FILE_BYTES = 1 << 20

Reader = Callable[[str, object], Any]
"""(where, raw value of a flag, variable or YAML) to a value; InputError for one that is wrong."""


def _text(pattern: str, remedy: str) -> Reader:
    def read(where: str, raw: object) -> str:
        if not isinstance(raw, str) or not re.fullmatch(pattern, raw, re.ASCII):
            raise InputError(where, raw, remedy)
        return raw

    return read


def _choice(*names: str) -> Reader:
    def read(where: str, raw: object) -> str:
        if not isinstance(raw, str) or raw not in names:
            raise InputError(where, raw, f"give one of {', '.join(names)}")
        return raw

    return read


def _mode(where: str, raw: object) -> Mode:
    return Mode(_choice(*Mode)(where, raw))


def _number(low: float, high: float) -> Reader:
    def read(where: str, raw: object) -> float:
        remedy = f"give a number from {low:g} to {high:g}"
        if isinstance(raw, bool) or not isinstance(raw, int | float | str):
            raise InputError(where, raw, remedy)
        try:
            value = float(raw)
        except (ValueError, OverflowError):
            raise InputError(where, raw, remedy) from None
        if not (math.isfinite(value) and low <= value <= high):
            raise InputError(where, raw, remedy)
        return value

    return read


def _port(where: str, raw: object) -> int:
    value = _number(1, 65535)(where, raw)
    if value != int(value):
        raise InputError(where, raw, "give a whole number from 1 to 65535")
    return int(value)


def _flag(where: str, raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw in ("true", "false"):
        return raw == "true"
    raise InputError(where, raw, "give true or false")


def _path(where: str, raw: object) -> Path:
    if not isinstance(raw, str | Path) or not str(raw) or "\0" in str(raw):
        raise InputError(where, raw, "give a path")
    return Path(raw)


def _source(*words: str) -> Reader:
    def read(where: str, raw: object) -> str:
        if isinstance(raw, str) and (raw in words or re.fullmatch(r"file:[^\0]+", raw)):
            return raw
        raise InputError(where, raw, f"give {', '.join(words)} or file:PATH")

    return read


def _listen(where: str, raw: object) -> str:
    if not isinstance(raw, str):
        raise InputError(where, raw, "give HOST:PORT")
    address_of(raw, where)
    return raw


@dataclass(frozen=True, slots=True)
class Setting:
    """How a field is read and what the reference page says of it."""

    reader: Reader
    values: str
    text: str


_NAME = _text(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", "give a name as Kubernetes has it")
_HOST = _text(r"[A-Za-z0-9._:\[\]-]{1,255}", "give a host name or address")
_WATTS = _number(1.0, 100_000.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What the agent runs with; `SETTINGS` says what each field means."""

    node: str
    mode: Mode = Mode.GRANTS
    state_dir: Path = Path("/var/lib/wattline-agent")
    grants: Path | None = None
    driver: str = "nvml"
    dcgm_host: str = "127.0.0.1"
    dcgm_port: int = 5555
    safe_default_w: float | None = None
    pods: str = "auto"
    owners: str = "auto"
    kubelet_socket: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    proc_root: Path | None = None
    namespace: str | None = None
    kubeconfig: Path | None = None
    listen: str = "127.0.0.1:9477"
    token_file: Path | None = None
    brake_file: Path | None = None
    brake_w: float | None = None
    take_over: bool = False
    dynamo_state: Path = Path("/var/lib/dynamo-power-agent/managed_gpus.json")
    clock_ceilings: bool = True
    repair: bool = True
    readback_s: float = 1.0
    reconcile_s: float = 60.0
    grants_poll_s: float = 0.1
    hung_s: float = 5.0
    log_format: str = "text"
    log_level: str = "info"

    @property
    def pod_source(self) -> str:
        """`kube`, `none` or `file:PATH`: `pods` with `auto` resolved."""
        if self.pods != "auto":
            return self.pods
        return "kube" if self.mode is Mode.ANNOTATIONS else "none"

    def writable_w(self, watts: float) -> float:
        """`watts` as the driver can write them: never more."""
        return float(math.floor(watts)) if self.driver in WHOLE_WATTS else watts

    @property
    def control_socket(self) -> Path:
        """Unix socket for commands."""
        return self.state_dir / "control.sock"


SETTINGS: Mapping[str, Setting] = {
    "node": Setting(
        _NAME, "name", "Node's name; else `NODE_NAME`, else the host's name without a cluster."
    ),
    "mode": Setting(_mode, "`grants`, `annotations`", "Where limits come from."),
    "state_dir": Setting(
        _path, "path", "The agent's own directory: journal, lock, control socket, report."
    ),
    "grants": Setting(
        _path, "path", "File of grants, or directory with one per node; needed for grants."
    ),
    "driver": Setting(
        _choice("nvml", "dcgm", "simulated"), "`nvml`, `dcgm`, `simulated`", "GPU library."
    ),
    "dcgm_host": Setting(_HOST, "host", "DCGM host engine of this node."),
    "dcgm_port": Setting(_port, "port", "Its port."),
    "safe_default_w": Setting(
        _WATTS, "watts", "For a pod whose annotation cannot be obeyed; needed for annotations."
    ),
    "pods": Setting(
        _source("auto", "kube", "none"),
        "`auto`, `kube`, `none`, `file:PATH`",
        "This node's pods; `auto`: from the cluster for annotations, none for grants.",
    ),
    "owners": Setting(
        _source("auto"),
        "`auto`, `file:PATH`",
        "Who holds which GPU; `auto`: the kubelet's socket, processes where it is missing.",
    ),
    "kubelet_socket": Setting(_path, "path", "The kubelet's PodResources socket."),
    "proc_root": Setting(
        _path, "path", "The host's process tree for the fallback; else `/host/proc`, else `/proc`."
    ),
    "namespace": Setting(_NAME, "name", "Pods of this namespace only."),
    "kubeconfig": Setting(
        _path, "path", "How to reach the cluster; else the pod's service account."
    ),
    "listen": Setting(
        _listen,
        "`HOST:PORT`",
        "Metrics, health and report; other than loopback only with `token_file`.",
    ),
    "token_file": Setting(
        _path, "path", "Bearer token that every request but the two probes must carry."
    ),
    "brake_file": Setting(
        _path, "path", "While this file exists, all GPUs are at their brake watts."
    ),
    "brake_w": Setting(
        _WATTS, "watts", "Brake watts where no grant names them; else each GPU's smallest limit."
    ),
    "take_over": Setting(_flag, "`true`, `false`", "Take over the GPUs of a Dynamo Power Agent."),
    "dynamo_state": Setting(_path, "path", "State file of Dynamo's Power Agent."),
    "clock_ceilings": Setting(_flag, "`true`, `false`", "Obey clock ceilings that grants carry."),
    "repair": Setting(
        _flag, "`true`, `false`", "Write our limit again over a rival writer's, backing off."
    ),
    "readback_s": Setting(
        _number(0.1, 3600.0), "seconds", "Between readings of each GPU in peace."
    ),
    "reconcile_s": Setting(
        _number(1.0, 3600.0), "seconds", "Between full reconciles: the safety net."
    ),
    "grants_poll_s": Setting(
        _number(0.005, 10.0), "seconds", "Between looks at the grants and the brake file."
    ),
    "hung_s": Setting(
        _number(0.5, 600.0), "seconds", "After which a call to a GPU counts as hung."
    ),
    "log_format": Setting(_choice("text", "json"), "`text`, `json`", "For people, for machines."),
    "log_level": Setting(
        _choice("debug", "info", "warning"), "`debug`, `info`, `warning`", "What is logged."
    ),
}


def flag_name(name: str) -> str:
    """The flag of a setting."""
    return f"--{name.replace('_', '-')}"


def is_switch(name: str) -> bool:
    """Whether a setting is true or false."""
    return SETTINGS[name].reader is _flag


def address_of(listen: str, where: str = "listen") -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[IPV6]:PORT`; port 0: any free one."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", listen, re.A)
    if match is None or int(match[3]) > 65535:
        raise InputError(where, listen, "give HOST:PORT, as in 127.0.0.1:9477 or [::1]:9477")
    return match[1] or match[2], int(match[3])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(
    file: Path | None,
    env: Mapping[str, str],
    flags: Mapping[str, object],
    warned: Callable[[str], None] = lambda line: None,
    *,
    whole: bool = True,
) -> tuple[AgentSettings, tuple[str, ...], dict[str, str]]:
    """Settings, warnings (one line each) and where each value came from.

    `flags` has field names to values, None: not given. Unknown keys of the file and unknown
    `WATTLINE_AGENT_*` variables warn; a value that cannot be used is an InputError. `warned` gets
    each warning at once: a misspelt name may be why the settings are then refused. whole False:
    settings that the agent cannot run with are taken too, see `check_whole`.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(SETTINGS, "default")
    warnings: list[str] = []

    def warn(line: str, name: str) -> None:
        warnings.append(_unknown(line, name))
        warned(warnings[-1])

    def take(name: str, raw: object, origin: str) -> None:
        values[name] = SETTINGS[name].reader(f"{name} ({origin})", raw)
        origins[name] = origin

    if file is not None:
        for key, raw in _read_file(file).items():
            if key not in SETTINGS:
                shown = _shown(key)
                warn(f"{file}: unknown key `{shown}` is ignored", shown)
            elif raw is not None:
                take(str(key), raw, str(file))
    if env.get("NODE_NAME"):
        take("node", env["NODE_NAME"], "NODE_NAME")
    for variable in sorted(v for v in env if v.startswith(ENV_PREFIX) and v != CONFIG_ENV):
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name not in SETTINGS:
            warn(f"unknown variable {_shown(variable)} is ignored", name)
        else:
            take(name, env[variable], variable)
    for name, raw in flags.items():
        if raw is not None:
            take(name, raw, flag_name(name))
    settings = AgentSettings(**{"node": "", **values})
    if not settings.node and settings.pod_source != "kube":
        settings = dataclasses.replace(settings, node=_NAME("node (host's name)", gethostname()))
        origins["node"] = "host's name"
    if not settings.node:
        raise InputError("node", "", "give --node or NODE_NAME: pods of this node are asked for")
    if whole:
        check_whole(settings)
    return settings, tuple(warnings), origins


def _read_file(file: Path) -> dict[object, object]:
    try:
        import yaml
    except ImportError:
        raise InputError(
            str(file), "PyYAML is missing", "pip install 'wattline[agent]', or use flags"
        ) from None
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(str(file), error.strerror or str(error), "name a readable file") from None
    if len(data) > MAX_FILE_BYTES:
        raise InputError(str(file), f"over {MAX_FILE_BYTES} bytes", "give a file of settings")
    try:
        document = yaml.safe_load(data.decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        found = " ".join(str(error).split()) or type(error).__name__
        raise InputError(str(file), found, "give YAML, one `name: value` a line") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InputError(str(file), document, "give YAML, one `name: value` a line")
    return document


def _shown(key: object) -> str:
    """A key as a warning can show it: printable and short. YAML has keys that are no texts."""
    if not isinstance(key, str | bool | float) and not (isinstance(key, int) and abs(key) < 1e9):
        return f"<{type(key).__name__}>"
    text = str(key) if str(key).isprintable() else ascii(key)[1:-1]
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unknown(line: str, name: str) -> str:
    import difflib  # 150 kB that a well-written configuration does not need

    near = difflib.get_close_matches(name, SETTINGS, n=1)
    return f"{line}{f'; did you mean `{near[0]}`?' if near else ''}"


def check_whole(settings: AgentSettings) -> None:
    """InputError for settings that lack something, which no field can tell alone."""
    if settings.mode is Mode.GRANTS and settings.grants is None:
        raise InputError("grants", "not given", "give --grants PATH, or --mode annotations")
    if settings.mode is Mode.ANNOTATIONS:
        if settings.safe_default_w is None:
            remedy = "give --safe-default-w WATTS, about 70 % of the product's largest limit"
            raise InputError("safe_default_w", "not given", remedy)
        if settings.pod_source == "none":
            raise InputError("pods", "none", "annotations need pods: give kube or file:PATH")
    host, _ = address_of(settings.listen)
    if settings.token_file is None and not is_loopback(host):
        raise InputError("listen", settings.listen, "give --token-file too, or listen on 127.0.0.1")
