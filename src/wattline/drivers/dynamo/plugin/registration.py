"""Keeps the plugin registered with a planner's gateway, through restarts of either side.

The planner refuses an id that it knows, and nothing ever evicts one: after a restart of ours the
old entry is unregistered first. A planner that has restarted has forgotten us: the next heartbeat
is refused, and we register again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wattline.core.errors import InputError
from wattline.drivers.dynamo.plugin.messages import (
    PACKAGE,
    Registration,
    decode_ok,
    decode_register_answer,
    encode_heartbeat,
    encode_registration,
    encode_unregister,
)
from wattline.drivers.dynamo.plugin.server import import_grpc, split_address
from wattline.drivers.protobuf import WireError

log = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
"""A third of the planner's (inert) time limit of 15 s, as its protocol suggests."""
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.5, 15.0
_CALL_S = 5.0
_MAX_SECRET_BYTES = 4096


@dataclass(frozen=True, slots=True)
class RegistrationView:
    """Whether a plugin is registered, and if not why. `accepted`: times that it was."""

    plugin_id: str
    registered: bool
    why_not: str | None
    accepted: int


class GatewayError(Exception):
    """A call that the gateway did not answer as it should; `code` is gRPC's name."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class Registrar:
    """Registers one plugin and keeps it so, in a thread of its own, from `start` to `stop`."""

    def __init__(
        self,
        gateway: str,
        registration: Registration,
        secret_file: Path | None,
        *,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        """gateway: `unix:///path` or `host:port`. InputError for another, or no usable secret."""
        self._grpc = import_grpc()
        self._target = gateway_target(gateway)
        self._registration = registration
        self._secret_file = secret_file
        read_secret(secret_file)
        self._heartbeat_s = heartbeat_s
        self._channel: Any = None
        self._stop = threading.Event()
        self._view = RegistrationView(registration.plugin_id, False, "not tried yet", 0)
        self._thread = threading.Thread(target=self._run, name="registrar", daemon=True)

    @property
    def view(self) -> RegistrationView:
        """How it stands."""
        return self._view

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Unregister, if registered, and end."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        wait_s = _FIRST_RETRY_S
        while not self._stop.is_set():
            if self._step():
                wait_s = _FIRST_RETRY_S
                self._stop.wait(self._heartbeat_s)
            else:
                self._stop.wait(wait_s)
                wait_s = min(_LONGEST_RETRY_S, 2.0 * wait_s)
        if self._view.registered:
            self._leave("plugin ends")
        self._close()

    def _step(self) -> bool:
        """Heartbeat or register; whether we are registered after it."""
        try:
            token = read_secret(self._secret_file)
            if self._view.registered:
                return self._beat(token)
            return self._register(token)
        except InputError as error:
            return self._lost(str(error))
        except GatewayError as error:
            # The channel holds on to an address that a restarted planner may have left.
            self._close()
            return self._lost(str(error))

    def _beat(self, token: str) -> bool:
        plugin_id = self._registration.plugin_id
        answer = self._call("Heartbeat", encode_heartbeat(plugin_id, token))
        try:
            ok = decode_ok(answer)
        except WireError as error:
            return self._lost(f"the gateway's answer cannot be read: {error}")
        return ok or self._lost("the heartbeat was refused")

    def _register(self, token: str) -> bool:
        self._leave("registers again")
        asked = replace(self._registration, auth_token=token)
        try:
            answer = decode_register_answer(self._call("Register", encode_registration(asked)))
        except WireError as error:
            return self._lost(f"the gateway's answer cannot be read: {error}")
        if not answer.accepted:
            return self._lost(_remedied(answer.reason))
        accepted = self._view.accepted + 1
        self._view = RegistrationView(asked.plugin_id, True, None, accepted)
        log.info("registered", extra={"id": asked.plugin_id, "endpoint": asked.endpoint})
        return True

    def _leave(self, reason: str) -> None:
        """Unregister; that the planner does not know us is what we want."""
        plugin_id = self._registration.plugin_id
        try:
            token = read_secret(self._secret_file)
            self._call("Unregister", encode_unregister(plugin_id, reason, token))
        except (GatewayError, InputError) as error:
            log.debug("not unregistered", extra={"id": plugin_id, "why": str(error)})

    def _lost(self, why: str) -> bool:
        view = self._view
        if view.registered or view.why_not != why:
            log.warning("not registered", extra={"id": view.plugin_id, "why": why})
        self._view = replace(view, registered=False, why_not=why)
        return False

    def _call(self, method: str, request: bytes) -> bytes:
        if self._channel is None:
            self._channel = self._grpc.insecure_channel(
                self._target,
                options=[
                    ("grpc.enable_http_proxy", 0),
                    ("grpc.initial_reconnect_backoff_ms", 200),
                    ("grpc.min_reconnect_backoff_ms", 200),
                    ("grpc.max_reconnect_backoff_ms", 2000),
                ],
            )
        call = self._channel.unary_unary(f"/{PACKAGE}.PluginRegistry/{method}")
        try:
            return bytes(call(request, timeout=_CALL_S))
        except self._grpc.RpcError as error:
            text = " ".join(str(error.details()).split())[:200]
            raise GatewayError(error.code().name, f"{method} at {self._target}: {text}") from None

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def gateway_target(gateway: str) -> str:
    """The gateway as gRPC names it. InputError."""
    if gateway.startswith("unix:"):
        path = gateway.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/"):
            raise InputError("gateway", gateway, "must be unix:///absolute/path or host:port")
        return f"unix:{path}"
    split_address(gateway)
    return gateway


def read_secret(path: Path | None) -> str:
    """The shared secret in a file, without white space around it; empty without a file."""
    if path is None:
        return ""
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "give a readable file") from None
    secret = content.strip()
    if not secret or len(content) > _MAX_SECRET_BYTES or not secret.isascii():
        raise InputError(str(path), f"{len(content)} bytes", "must hold one secret in ASCII")
    return secret.decode()


def _remedied(reason: str) -> str:
    """The gateway's reason with what to do about it."""
    remedies: Sequence[tuple[str, str]] = (
        ("auth_failed", "the planner's static_secrets must hold the secret of --secret-file"),
        ("duplicate_plugin_id", "another plugin has this id and another secret: give another --id"),
        ("protocol_version", "this program speaks protocol 1.0"),
    )
    for start, remedy in remedies:
        if reason.startswith(start):
            return f"{reason}: {remedy}"
    return reason or "refused without a reason"
