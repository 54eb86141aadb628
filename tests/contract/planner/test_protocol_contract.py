"""Our description and our codec against the messages that release 1.6.1 ships."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from wattline.drivers.dynamo import plugin
from wattline.drivers.dynamo.plugin.messages import (
    ROLES,
    Accept,
    Override,
    OverrideType,
    Reject,
    StageResult,
    Target,
    decode_stage_request,
    encode_stage_response,
)
from wattline.live import environment

HERE = Path(__file__).resolve().parent
CASES = 2000
LARGEST = 2**31 - 1


def random_target(draw: random.Random) -> dict[str, Any]:
    target: dict[str, Any] = {"sub_component_type": draw.choice(ROLES)}
    if draw.random() < 0.8:
        target["replicas"] = draw.choice([0, 1, draw.randint(0, 300), LARGEST])
    target["type"] = draw.choice([kind.name for kind in OverrideType])
    return target


def random_request(draw: random.Random) -> dict[str, Any]:
    """A request as JSON, with fields that we read and fields that we pass over."""
    context: dict[str, Any] = {"request_id": "".join(draw.choices("abcé-", k=draw.randint(0, 9)))}
    if draw.random() < 0.9:
        workers: dict[str, Any] = {}
        for role in ROLES:
            for name in (f"ready_{role}", f"expected_{role}"):
                if draw.random() < 0.7:
                    workers[name] = draw.choice([0, draw.randint(0, 500), LARGEST])
            if draw.random() < 0.5:
                workers[f"{role}_scaling_in_progress"] = draw.random() < 0.5
        context["observations"] = {"workers": workers}
        if draw.random() < 0.5:
            context["observations"]["traffic"] = {"duration_s": draw.random(), "num_req": 3.5}
        if draw.random() < 0.3:
            context["observations"]["fpm"] = {"decode_engines": {"1/0": "gQE="}}
    if draw.random() < 0.3:
        context["predictions"] = {"predicted_isl": draw.random(), "source": "builtin"}
    if draw.random() < 0.9:
        targets = [random_target(draw) for _ in range(draw.randint(1, 4))]
        context["proposal"] = {"targets": targets, "reason": "load"}
    return {"context": context}


def random_answer(draw: random.Random) -> StageResult:
    kind = draw.randrange(4)
    if kind == 0:
        return Accept()
    if kind == 1:
        return Reject(draw.choice(["", "no", "é"]))
    targets = [
        Target(
            draw.choice(ROLES),
            draw.choice([None, 0, draw.randint(0, 300), LARGEST]),
            draw.choice(list(OverrideType)),
        )
        for _ in range(draw.randint(0, 3))
    ]
    return Override(tuple(targets), draw.choice(["", "why"]))


@pytest.fixture(scope="module")
def exchanged() -> dict[str, Any]:
    """What went to the release, and what came back."""
    home = environment.find(planner=True)
    if home is None:
        reason = "Dynamo is not installed: `python -m wattline.live.environment --planner`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    draw = random.Random(5)
    requests = [random_request(draw) for _ in range(CASES)]
    answers = [random_answer(draw) for _ in range(CASES)]
    sent = {
        "requests": requests,
        "answers": [encode_stage_response(answer).hex() for answer in answers],
    }
    done = subprocess.run(
        [str(home.python), str(HERE / "release_messages.py")],
        input=json.dumps(sent), capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1500:]
    return {"sent": requests, "answers": answers, "back": json.loads(done.stdout)}


def test_every_name_and_number_of_our_description_is_the_release_s(
    exchanged: dict[str, Any],
) -> None:
    schema = exchanged["back"]["schema"]
    text = (Path(plugin.__file__).parent / "plugin.proto").read_text()
    text = re.sub(r"//[^\n]*", "", text)
    assert f"package {schema['package']};" in text
    blocks = re.findall(r"(message|enum|service) (\w+) \{(.*?)\n?\}\n", text, re.DOTALL)
    assert len(blocks) > 20
    for kind, name, body in blocks:
        if kind == "service":
            found = re.findall(r"rpc (\w+)\((\w+)\) returns \((\w+)\)", body)
            assert {n: [i, o] for n, i, o in found}.items() <= schema["services"][name].items()
        else:
            fields = {n: int(v) for n, v in re.findall(r"(\w+) = (\d+);", body)}
            known = schema["messages" if kind == "message" else "enums"][name]
            assert fields.items() <= known.items(), name


def test_requests_of_the_release_are_read_as_they_are_meant(exchanged: dict[str, Any]) -> None:
    pairs = zip(exchanged["sent"], exchanged["back"]["requests"], strict=True)
    for meant, sent in pairs:
        request = decode_stage_request(bytes.fromhex(sent))
        context = meant["context"]
        assert request.request_id == context["request_id"]
        proposal = context.get("proposal")
        targets = (
            None
            if proposal is None
            else tuple(
                Target(t["sub_component_type"], t.get("replicas"), OverrideType[t["type"]])
                for t in proposal["targets"]
            )
        )
        assert request.proposal == targets
        workers = context.get("observations", {}).get("workers", {})
        for role in ROLES:
            seen = request.workers(role)
            assert seen.ready == workers.get(f"ready_{role}")
            assert seen.expected == workers.get(f"expected_{role}")
            assert seen.scaling == workers.get(f"{role}_scaling_in_progress")


def test_answers_of_ours_are_read_by_the_release_as_they_are_meant(
    exchanged: dict[str, Any],
) -> None:
    for answer, read in zip(exchanged["answers"], exchanged["back"]["answers"], strict=True):
        assert read == _as_json(answer)


def _as_json(answer: StageResult) -> dict[str, Any]:
    if isinstance(answer, Accept):
        return {"accept": {}}
    if isinstance(answer, Reject):
        return {"reject": {"reason": answer.reason} if answer.reason else {}}
    targets = []
    for target in answer.targets:
        said: dict[str, Any] = {"subComponentType": target.role}
        if target.replicas is not None:
            said["replicas"] = target.replicas
        if target.kind is not OverrideType.SET:
            said["type"] = target.kind.name
        targets.append(said)
    override: dict[str, Any] = {"targets": targets} if targets else {}
    if answer.reason:
        override["reason"] = answer.reason
    return {"override": override}
