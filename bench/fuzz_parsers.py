"""Every parser of the agent as a target: how to draw an input for it and how to feed it.

A target's `feed` gets one mutated input. It may return what people get to read of it, or raise the
one error tree of Wattline; anything else is a defect, and so is a text of more than one line.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz_mutations import Mutator
from fuzz_samples import (
    ANNOTATIONS,
    CGROUPS,
    COMMAND_DOCUMENTS,
    ENV_VALUES,
    GPUS,
    LOG_LINES,
    NODE,
    OWNERS_DOCUMENTS,
    POD_OBJECTS,
    PODS_DOCUMENTS,
    SETTINGS_DOCUMENTS,
    SETTINGS_TEXTS,
    SLICES,
    STATE_DOCUMENTS,
    grant_samples,
    journal_samples,
    listing_samples,
    report_samples,
)
from wattline.agent.annotated import PodIndex, decide, parse_limit
from wattline.agent.control import COMMANDS, decode_command
from wattline.agent.grant_source import FileGrantSource, GrantsRefused
from wattline.agent.journal import Journal
from wattline.agent.journal import decode as decode_journal
from wattline.agent.settings import ENV_PREFIX, SETTINGS, load_settings
from wattline.agent.takeover import read_state
from wattline.core.errors import WattlineError
from wattline.drivers.gpu.device import LimitRange
from wattline.drivers.grant_files import GrantFile, decode_grants, decode_report
from wattline.drivers.grant_log import FencedError, GrantLog
from wattline.drivers.grant_records import decode_records
from wattline.drivers.kube.pod_object import pod_of
from wattline.drivers.kube.slices import uuids_of
from wattline.drivers.kubelet.cgroups import pod_uid, read_pod_uid
from wattline.drivers.kubelet.devices import GpuResolver
from wattline.drivers.kubelet.wire import decode_list
from wattline.drivers.pods import Pod
from wattline.drivers.pods_file import OwnersFile, PodsFile


@dataclass(frozen=True, slots=True)
class Target:
    """A parser: `make` draws an input, `feed` parses it and returns texts for people."""

    name: str
    make: Callable[[Mutator], bytes]
    feed: Callable[[bytes], Sequence[str]]


def silent(_: object) -> Sequence[str]:
    """Nothing for people to read came of it."""
    return ()


class Files:
    """Files that are replaced by each case; a folder of the run's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o700)

    def put(self, name: str, data: bytes) -> Path:
        """Write one of the run's files."""
        path = self.folder / name
        path.write_bytes(data)
        path.chmod(0o600)
        return path

    def process(self, data: bytes) -> Path:
        """A process tree in which process 1 has this cgroup file."""
        (self.folder / "proc" / "1").mkdir(parents=True, exist_ok=True)
        self.put("proc/1/cgroup", data)
        return self.folder / "proc"


def annotation_texts(data: bytes) -> Sequence[str]:
    """One pod, and two that share a GPU: whatever is decided lies in the GPU's range."""
    text = data.decode("utf-8", "surrogatepass")
    watts = parse_limit(text)
    if watts is not None and not 0 < watts < 10**9:
        raise AssertionError(f"{text!r} was read as {watts} W")
    pods = [Pod("a", "b", "uid-1", text), Pod("a", "c", "uid-2", "400")]
    limits = LimitRange(200.0, 700.0)
    notes = []
    for owners in ({"uid-1"}, {"uid-1", "uid-2"}, {"uid-1", "unknown"}):
        decision = decide(owners, PodIndex(pods), ours=False, limits=limits, safe_default_w=500.0)
        if decision.watts is not None and not 200.0 <= decision.watts <= 700.0:
            raise AssertionError(f"{text!r} led to {decision.watts} W")
        notes.append(decision.note or "")
    return notes


def checked_grants(file: GrantFile) -> Sequence[str]:
    """What an accepted grant file may hold."""
    for entry in file.grants:
        grant = entry.grant
        for number in (grant.watts, grant.brake_w, grant.lease_s, grant.expiry_w or 0.0):
            if not 0.0 <= number <= 1e9:
                raise AssertionError(f"a grant with {number}")
    return [entry.grant.gpu for entry in file.grants]


def signed_journal(mutator: Mutator) -> bytes:
    """A journal whose body is wrong under a checksum that is right."""
    body = journal_samples()[1].split(b"\n")[1]
    mutated = mutator.some_json([json.loads(body)]).replace(b"\n", b" ")
    head = {"version": 1, "sha256": hashlib.sha256(mutated).hexdigest()}
    return json.dumps(head).encode() + b"\n" + mutated + b"\n"


def signed_log(mutator: Mutator) -> bytes:
    """A coordinator's log of three lines, of which one is wrong under a checksum that is right."""
    lines = [json.dumps(line).encode() for line in LOG_LINES]
    place = mutator.draw.randrange(len(lines))
    lines[place] = mutator.some_json([LOG_LINES[place]]).replace(b"\n", b" ")
    signed = b"".join(b"%08x %s\n" % (zlib.crc32(line), line) for line in lines)
    return signed if mutator.draw.random() < 0.8 else mutator.some_bytes([signed])


def feed_commands(data: bytes) -> Sequence[str]:
    command = decode_command(list(COMMANDS)[len(data) % len(COMMANDS)], data)
    return [str(value) for value in (command.by, getattr(command, "why", ""))]


def environment(mutator: Mutator) -> dict[str, str]:
    names = [*SETTINGS, "unknown", "NOD"]
    return {
        f"{ENV_PREFIX}{mutator.draw.choice(names).upper()}": mutator.some_text(ENV_VALUES)
        for _ in range(mutator.draw.randint(0, 3))
    }


def settings_input(mutator: Mutator) -> bytes:
    """A configuration file, and after a zero line the environment."""
    if mutator.draw.random() < 0.6:
        text = mutator.some_json(SETTINGS_DOCUMENTS)
    else:
        text = mutator.some_bytes(SETTINGS_TEXTS)
    surroundings = json.dumps(environment(mutator)).encode()
    return text + b"\n@environment@" + surroundings


def targets(folder: Path) -> list[Target]:
    """All parsers; files of the run are made in `folder`."""
    files = Files(folder)
    grants, reports, journals = grant_samples(), report_samples(), journal_samples()
    listings = listing_samples()

    def json_or_bytes(samples: Sequence[bytes]) -> Callable[[Mutator], bytes]:
        documents = [json.loads(sample) for sample in samples]

        def make(mutator: Mutator) -> bytes:
            if mutator.draw.random() < 0.7:
                return mutator.some_json(documents)
            return mutator.some_bytes(samples)

        return make

    def documents(samples: Sequence[object]) -> Callable[[Mutator], bytes]:
        return json_or_bytes([json.dumps(sample).encode() for sample in samples])

    def feed_source(data: bytes) -> Sequence[str]:
        source = FileGrantSource(
            files.put("grants.json", data),
            node=NODE,
            brake_file=files.put("brake", data),
            poll_s=1.0,
            now=lambda: 0.0,
        )
        for event in source.look():
            if isinstance(event, GrantsRefused):
                raise WattlineError(event.why)
        return ()

    def feed_journal_file(data: bytes) -> Sequence[str]:
        files.put("journal.json", data)
        journal = Journal(files.folder)
        journal.load()
        for aside in files.folder.glob("journal.json.corrupt-*"):
            aside.unlink()
        if journal.set_aside is not None:
            raise WattlineError(journal.set_aside)
        return ()

    def feed_pods(data: bytes) -> Sequence[str]:
        source = PodsFile(files.put("pods.json", data), poll_s=60.0)
        source.start()
        source.stop()
        return silent(source.pods())

    def feed_settings(data: bytes) -> Sequence[str]:
        text, _, surroundings = data.rpartition(b"\n@environment@")
        env: Mapping[str, str] = json.loads(surroundings)
        path = files.put("agent.yaml", text)
        _, warnings, _ = load_settings(path, env, {})
        return warnings

    def feed_log(data: bytes) -> Sequence[str]:
        path = files.put("grants.log", data)
        try:
            log = GrantLog(path)
        except FencedError as error:
            raise AssertionError("the log before this one was not let go") from error
        try:
            decode_records(log.replay.records, str(path))
        finally:
            log.close()
        return ()

    def parsed(data: bytes) -> Any:
        # The client library has decoded the object before we see it: what is no JSON never comes.
        try:
            return json.loads(data.decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError):
            return None

    def feed_listing(data: bytes) -> Sequence[str]:
        ownership = GpuResolver(lambda: {"MIG-1234": GPUS[2]}).ownership(decode_list(data))
        return ownership.unresolved

    return [
        Target(
            "annotation",
            lambda mutator: mutator.some_text(ANNOTATIONS).encode("utf-8", "surrogatepass"),
            annotation_texts,
        ),
        Target(
            "grant file",
            json_or_bytes(grants),
            lambda data: checked_grants(decode_grants(data, node=NODE, where="grants")),
        ),
        Target("grant source on disk", json_or_bytes(grants), feed_source),
        Target(
            "report",
            json_or_bytes(reports),
            lambda data: silent(decode_report(data, node=NODE, where="report")),
        ),
        Target(
            "journal, torn",
            lambda mutator: mutator.some_bytes(journals),
            lambda data: silent(decode_journal(data)),
        ),
        Target(
            "journal, signed",
            signed_journal,
            lambda data: silent(decode_journal(data)),
        ),
        Target("journal on disk", signed_journal, feed_journal_file),
        Target("coordinator's log", signed_log, feed_log),
        Target("PodResources", lambda mutator: mutator.some_bytes(listings), feed_listing),
        Target(
            "cgroup text",
            lambda mutator: mutator.some_text(CGROUPS).encode("utf-8", "surrogatepass"),
            lambda data: [pod_uid(data.decode("utf-8", "surrogatepass")) or ""],
        ),
        Target(
            "cgroup file",
            lambda mutator: mutator.some_bytes([text.encode() for text in CGROUPS]),
            lambda data: [read_pod_uid(files.process(data), 1) or ""],
        ),
        Target("pods file", documents(PODS_DOCUMENTS), feed_pods),
        Target(
            "owners file",
            documents(OWNERS_DOCUMENTS),
            lambda data: list(OwnersFile(files.put("owners.json", data)).owners().unresolved),
        ),
        Target("configuration", settings_input, feed_settings),
        Target("command", documents(COMMAND_DOCUMENTS), feed_commands),
        Target(
            "state of Dynamo's agent",
            documents(STATE_DOCUMENTS),
            lambda data: list(read_state(files.put("managed.json", data))),
        ),
        Target("pod object", documents(POD_OBJECTS), lambda data: silent(pod_of(parsed(data)))),
        Target(
            "ResourceSlices",
            documents(SLICES),
            lambda data: silent(uuids_of(parsed(data))),
        ),
    ]
