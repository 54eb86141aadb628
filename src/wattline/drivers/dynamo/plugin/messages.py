"""Messages of the plugin protocol: dataclasses with their encoding (`plugin.proto` beside this).

What a plugin receives is decoded, what it sends is encoded. Planner-side halves exist where a test
or a benchmark speaks as the planner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from wattline.drivers.protobuf import (
    WireError,
    Writer,
    as_bool,
    as_int32,
    as_message,
    as_text,
    read_fields,
)

PACKAGE = "dynamo.planner.plugin.v1"
PROTOCOL_VERSION = "1.0"
"""The one version that release 1.6.1 accepts."""
PREFILL, DECODE = "prefill", "decode"
ROLES = (PREFILL, DECODE)
"""Values of `sub_component_type`; aggregated workers count as decode."""


class HoldPolicy(IntEnum):
    """What the planner takes between two calls of a plugin."""

    ACCEPT_WHEN_IDLE = 0
    HOLD_LAST = 1


class OverrideType(IntEnum):
    """How a target is meant."""

    SET = 0
    AT_LEAST = 1
    AT_MOST = 2


@dataclass(frozen=True, slots=True)
class Target:
    """Replicas of one role; None: no opinion."""

    role: str
    replicas: int | None
    kind: OverrideType = OverrideType.SET


@dataclass(frozen=True, slots=True)
class WorkerCounts:
    """Workers of one role as the planner sees them; None: it does not know."""

    ready: int | None = None
    expected: int | None = None
    scaling: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequest:
    """What a stage is asked: the targets so far, and the workers; None: the planner said none."""

    request_id: str = ""
    decision_id: str = ""
    proposal: tuple[Target, ...] | None = None
    prefill: WorkerCounts = WorkerCounts()
    decode: WorkerCounts = WorkerCounts()

    def workers(self, role: str) -> WorkerCounts:
        """Counts of a role; unknown ones for a role that the protocol does not have."""
        return {PREFILL: self.prefill, DECODE: self.decode}.get(role, WorkerCounts())


@dataclass(frozen=True, slots=True)
class Accept:
    """No opinion."""


@dataclass(frozen=True, slots=True)
class Override:
    """Targets with a reason."""

    targets: tuple[Target, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reject:
    """Nothing at all is to be done this tick."""

    reason: str = ""


StageResult = Accept | Override | Reject


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a plugin says of itself when it registers."""

    plugin_id: str
    plugin_type: str
    priority: int
    endpoint: str
    version: str
    auth_token: str
    hold_policy: HoldPolicy = HoldPolicy.HOLD_LAST
    protocol_version: str = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class RegisterAnswer:
    """The gateway's answer."""

    accepted: bool = False
    reason: str = ""
    protocol_version: str = ""


def decode_stage_request(data: bytes) -> StageRequest:
    """A Propose- or ConstrainStageRequest. WireError for bytes that are none."""
    request_id = decision_id = ""
    proposal: tuple[Target, ...] | None = None
    counts = (WorkerCounts(), WorkerCounts())
    for number, value in read_fields(_single(data, 1)):
        if number == 1:
            request_id = as_text(value)
        elif number == 2:
            decision_id = as_text(value)
        elif number == 3:
            workers = _single(as_message(value), 3)
            counts = _decode_workers(workers)
        elif number == 5:
            proposal = _decode_targets(as_message(value))
    return StageRequest(
        request_id=request_id,
        decision_id=decision_id,
        proposal=proposal,
        prefill=counts[0],
        decode=counts[1],
    )


def encode_stage_request(request: StageRequest) -> bytes:
    """The planner's side of `decode_stage_request`."""
    prefill, decode = request.prefill, request.decode
    workers = (
        Writer()
        .optional_number(1, prefill.ready)
        .optional_number(2, decode.ready)
        .optional_number(3, prefill.expected)
        .optional_number(4, decode.expected)
        .optional_number(5, prefill.scaling)
        .optional_number(6, decode.scaling)
    )
    proposal = None
    if request.proposal is not None:
        proposal = _encode_targets(request.proposal).done()
    context = (
        Writer()
        .text(1, request.request_id)
        .text(2, request.decision_id)
        .message(3, Writer().message(3, workers.done()).done())
        .message(5, proposal)
    )
    return Writer().message(1, context.done()).done()


def encode_stage_response(result: StageResult) -> bytes:
    """A Propose- or ConstrainStageResponse. An empty result would count as an error there."""
    if isinstance(result, Accept):
        return Writer().message(1, b"").done()
    if isinstance(result, Override):
        override = _encode_targets(result.targets).text(2, result.reason)
        return Writer().message(2, override.done()).done()
    return Writer().message(3, Writer().text(1, result.reason).done()).done()


def decode_stage_response(data: bytes) -> StageResult | None:
    """The planner's side of `encode_stage_response`; None: no result in it."""
    result: StageResult | None = None
    for number, value in read_fields(data):
        if number == 1:
            result = Accept()
        elif number == 2:
            body = as_message(value)
            result = Override(_decode_targets(body), _last_text(body, 2))
        elif number == 3:
            result = Reject(_last_text(as_message(value), 1))
    return result


def encode_registration(registration: Registration) -> bytes:
    """A RegisterRequest: asked at every tick, of no data beyond the worker counts."""
    return (
        Writer()
        .text(1, registration.plugin_id)
        .text(2, registration.plugin_type)
        .number(3, registration.priority)
        .text(4, registration.endpoint)
        .text(5, registration.version)
        .number(7, registration.hold_policy)
        .text(9, registration.protocol_version)
        .text(10, registration.auth_token)
        .done()
    )


def decode_register_answer(data: bytes) -> RegisterAnswer:
    """A RegisterResponse. WireError."""
    accepted, reason, version = False, "", ""
    for number, value in read_fields(data):
        if number == 1:
            accepted = as_bool(value)
        elif number == 2:
            reason = as_text(value)
        elif number == 3:
            version = as_text(value)
    return RegisterAnswer(accepted, reason, version)


def encode_heartbeat(plugin_id: str, auth_token: str) -> bytes:
    """A HeartbeatRequest."""
    return Writer().text(1, plugin_id).text(2, auth_token).done()


def encode_unregister(plugin_id: str, reason: str, auth_token: str) -> bytes:
    """An UnregisterRequest."""
    return Writer().text(1, plugin_id).text(2, reason).text(3, auth_token).done()


def decode_ok(data: bytes) -> bool:
    """The only field of a HeartbeatResponse or UnregisterResponse. WireError."""
    ok = False
    for number, value in read_fields(data):
        if number == 1:
            ok = as_bool(value)
    return ok


def encode_lifecycle_answer(ok: bool, message: str) -> bytes:
    """A BootstrapResponse or ResetResponse."""
    return Writer().number(1, ok).text(2, message).done()


def _single(data: bytes, wanted: int) -> bytes:
    """Embedded message `wanted`; several are one, in order, as protobuf merges them."""
    return b"".join(as_message(value) for number, value in read_fields(data) if number == wanted)


def _decode_workers(data: bytes) -> tuple[WorkerCounts, WorkerCounts]:
    counts: dict[int, int] = {}
    flags: dict[int, bool] = {}
    for number, value in read_fields(data):
        if 1 <= number <= 4:
            counts[number] = _count(as_int32(value))
        elif number in (5, 6):
            flags[number] = as_bool(value)
    return (
        WorkerCounts(counts.get(1), counts.get(3), flags.get(5)),
        WorkerCounts(counts.get(2), counts.get(4), flags.get(6)),
    )


def _decode_targets(data: bytes) -> tuple[Target, ...]:
    return tuple(
        _decode_target(as_message(value)) for number, value in read_fields(data) if number == 1
    )


def _decode_target(data: bytes) -> Target:
    role, replicas, kind = "", None, OverrideType.SET
    for number, value in read_fields(data):
        if number == 1:
            role = as_text(value)
        elif number == 3:
            replicas = _count(as_int32(value))
        elif number == 4:
            kind = _known(OverrideType, as_int32(value))
    return Target(role, replicas, kind)


def _encode_targets(targets: tuple[Target, ...]) -> Writer:
    writer = Writer()
    for target in targets:
        body = Writer().text(1, target.role).optional_number(3, target.replicas)
        writer.message(1, body.number(4, target.kind).done())
    return writer


def _last_text(data: bytes, wanted: int) -> str:
    text = ""
    for number, value in read_fields(data):
        if number == wanted:
            text = as_text(value)
    return text


def _known(kind: Callable[[int], OverrideType], value: int) -> OverrideType:
    try:
        return kind(value)
    except ValueError:
        raise WireError(f"an override of kind {value}") from None


def _count(value: int) -> int:
    if value < 0:
        raise WireError(f"{value} replicas")
    return value
