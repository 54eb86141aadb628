"""Every parser of the agent as a target: how to draw an input for it and how to feed it."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fuzz_feeds as feeds
from fuzz_mutations import Mutator
from fuzz_samples import (
    ANNOTATIONS,
    CGROUPS,
    COMMAND_DOCUMENTS,
    ENV_VALUES,
    LOG_LINES,
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
from wattline.agent.settings import ENV_PREFIX, SETTINGS

Make = Callable[[Mutator], bytes]


@dataclass(frozen=True, slots=True)
class Target:
    """A parser: `make` draws an input, `feed` parses it and returns texts for people."""

    name: str
    make: Make
    feed: Callable[[bytes], Sequence[str]]


def texts(samples: Sequence[str]) -> Make:
    """Mutated characters."""
    return lambda mutator: mutator.some_text(samples).encode("utf-8", "surrogatepass")


def some_bytes(samples: Sequence[bytes]) -> Make:
    """Mutated bytes."""
    return lambda mutator: mutator.some_bytes(samples)


def json_or_bytes(samples: Sequence[bytes]) -> Make:
    """Mutated places of JSON documents, now and then mutated bytes."""
    documents = [json.loads(sample) for sample in samples]

    def make(mutator: Mutator) -> bytes:
        if mutator.draw.random() < 0.7:
            return mutator.some_json(documents)
        return mutator.some_bytes(samples)

    return make


def documents(samples: Sequence[object]) -> Make:
    """The same, from documents."""
    return json_or_bytes([json.dumps(sample).encode() for sample in samples])


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
    return text + feeds.ENVIRONMENT_MARK + surroundings


def targets(folder: Path) -> list[Target]:
    """All parsers; files of the run are made in `folder`."""
    files = feeds.Files(folder)
    cgroups = [text.encode() for text in CGROUPS]
    return [
        Target("annotation", texts(ANNOTATIONS), feeds.annotation),
        Target("grant file", json_or_bytes(grant_samples()), feeds.grants),
        Target("grant source on disk", json_or_bytes(grant_samples()), files.grant_source),
        Target("report", json_or_bytes(report_samples()), feeds.report),
        Target("journal, torn", some_bytes(journal_samples()), feeds.journal),
        Target("journal, signed", signed_journal, feeds.journal),
        Target("journal on disk", signed_journal, files.journal),
        Target("coordinator's log", signed_log, files.log),
        Target("PodResources", some_bytes(listing_samples()), feeds.listing),
        Target("cgroup text", texts(CGROUPS), feeds.cgroup_text),
        Target("cgroup file", some_bytes(cgroups), files.cgroup),
        Target("pods file", documents(PODS_DOCUMENTS), files.pods),
        Target("owners file", documents(OWNERS_DOCUMENTS), files.owners),
        Target("configuration", settings_input, files.settings),
        Target("command", documents(COMMAND_DOCUMENTS), feeds.command),
        Target("state of Dynamo's agent", documents(STATE_DOCUMENTS), files.dynamo_state),
        Target("pod object", documents(POD_OBJECTS), feeds.pod_object),
        Target("ResourceSlices", documents(SLICES), feeds.slices),
    ]
