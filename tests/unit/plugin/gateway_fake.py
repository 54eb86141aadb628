"""A planner's gateway and caller of our own, over real gRPC on loopback.

It answers as release 1.6.1 was measured: refuses a known id, a wrong secret, and heartbeats of ids
that it does not know.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from wattline.drivers.dynamo.plugin.messages import (
    PACKAGE,
    StageRequest,
    StageResult,
    decode_stage_response,
    encode_stage_request,
)
from wattline.drivers.protobuf import Writer, read_fields


def texts(data: bytes) -> dict[int, str]:
    return {n: v.decode() for n, v in read_fields(data) if isinstance(v, bytes)}


class FakeGateway:
    """Listens until `close`; `plugins` are endpoint and secret by id."""

    def __init__(self, secrets: set[str], address: str = "127.0.0.1:0") -> None:
        self.secrets = secrets
        self.plugins: dict[str, tuple[str, str]] = {}
        self.heartbeats = 0
        self._server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
        methods = {
            "Register": self._register,
            "Heartbeat": self._heartbeat,
            "Unregister": self._unregister,
        }
        handlers = {k: grpc.unary_unary_rpc_method_handler(v) for k, v in methods.items()}
        name = f"{PACKAGE}.PluginRegistry"
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, handlers),)
        )
        self.port = self._server.add_insecure_port(address)
        self.address = address if address.startswith("unix:") else f"127.0.0.1:{self.port}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()

    def _register(self, data: bytes, context: Any) -> bytes:
        asked = texts(data)
        if asked.get(10, "") not in self.secrets:
            return Writer().text(2, "auth_failed").done()
        if asked[1] in self.plugins:
            return Writer().text(2, f"duplicate_plugin_id: {asked[1]}").done()
        self.plugins[asked[1]] = (asked[4], asked[10])
        return Writer().number(1, 1).text(3, asked[9]).done()

    def _heartbeat(self, data: bytes, context: Any) -> bytes:
        asked = texts(data)
        if asked[1] not in self.plugins:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "unknown plugin")
        self.heartbeats += 1
        return Writer().number(1, 1).done()

    def _unregister(self, data: bytes, context: Any) -> bytes:
        asked = texts(data)
        if self.plugins.get(asked[1], ("", None))[1] != asked.get(3):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "not yours")
        del self.plugins[asked[1]]
        return Writer().number(1, 1).done()


class Caller:
    """Calls a plugin as the planner does."""

    def __init__(self, endpoint: str) -> None:
        self._channel = grpc.insecure_channel(
            endpoint.removeprefix("grpc://"), options=[("grpc.enable_http_proxy", 0)]
        )

    def raw(self, method: str, data: bytes) -> bytes:
        call = self._channel.unary_unary(f"/{PACKAGE}.{method}")
        return bytes(call(data, timeout=20, wait_for_ready=True))

    def constrain(self, request: StageRequest) -> StageResult | None:
        data = encode_stage_request(request)
        return decode_stage_response(self.raw("ConstrainPlugin/Constrain", data))

    def close(self) -> None:
        self._channel.close()
