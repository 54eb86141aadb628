"""The gRPC server that the planner calls: plaintext, as its protocol has it, one port."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

from wattline.core.errors import InputError
from wattline.drivers.dynamo.plugin.messages import PACKAGE
from wattline.drivers.dynamo.plugin.service import PluginService

log = logging.getLogger(__name__)

_THREADS = 4
_MOST_CALLS = 32
_MAX_REQUEST_BYTES = 10 * 1024 * 1024
"""The planner's own default bound on a message."""
_GRACE_S = 1.0
_OPTIONS = [
    # Two processes on one port would each get some of the calls.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
    # The planner pings every 30 s between ticks that may be minutes apart; by default that is
    # called abuse and ends the connection.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
]


class PluginServer:
    """Listens from the start until `stop`."""

    def __init__(self, service: PluginService, listen: str) -> None:
        """Listen at `listen` (host:port, port 0: any). InputError when that cannot be."""
        grpc = import_grpc()
        host, port = split_address(listen)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="plugin")
        self._server = grpc.server(
            self._pool, options=_OPTIONS, maximum_concurrent_rpcs=_MOST_CALLS
        )
        for name, methods in {
            "ConstrainPlugin": {"Constrain": service.constrain},
            "ProposePlugin": {"Propose": service.propose},
            "PluginLifecycle": {"Bootstrap": service.bootstrap, "Reset": service.reset},
        }.items():
            self._server.add_generic_rpc_handlers((_handler(grpc, name, methods),))
        try:
            self.port: int = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            self._pool.shutdown()
            remedy = "cannot be listened at: is it taken? give another --listen"
            raise InputError("listen", listen, remedy) from None
        self.endpoint = f"grpc://{host}:{self.port}"
        """What the planner is to be told."""
        self._server.start()

    def stop(self) -> None:
        """Take no more calls and let those under way end, for a second at most."""
        self._server.stop(_GRACE_S).wait()
        self._pool.shutdown()


def split_address(address: str) -> tuple[str, int]:
    """`host:port`, an IPv6 host in brackets. InputError."""
    host, colon, port = address.rpartition(":")
    number = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 65536
    if not (host and colon and number) or "/" in host:
        raise InputError("address", address, "must be host:port, such as 127.0.0.1:9095")
    return host, int(port)


def import_grpc() -> ModuleType:
    """The library; InputError where it is not installed."""
    try:
        import grpc
    except ImportError:
        remedy = "install the extra `wattline[agent]`"
        raise InputError("planner plugin", "no module grpc", remedy) from None
    module: ModuleType = grpc
    return module


def _handler(
    grpc: ModuleType, service: str, methods: Mapping[str, Callable[[bytes], bytes]]
) -> Any:
    def answering(answer: Callable[[bytes], bytes]) -> Callable[[bytes, Any], bytes]:
        return lambda request, context: answer(request)

    return grpc.method_handlers_generic_handler(
        f"{PACKAGE}.{service}",
        {
            name: grpc.unary_unary_rpc_method_handler(answering(answer))
            for name, answer in methods.items()
        },
    )
