"""HTTPS to a server whose certificate only our own bundle knows."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from wattline.drivers.prometheus import Prometheus, PrometheusSettings, Query

_OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(
    _OPENSSL is None, reason="no `openssl` on PATH, which makes the certificate"
)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that do not trust the certificate hang up."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        result = [{"metric": {}, "value": [1.0, "7"]}]
        data = {"resultType": "vector", "result": result}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"status": "success", "data": data}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    assert _OPENSSL is not None
    path = tmp_path / "both.pem"
    subprocess.run(
        [
            *(
                _OPENSSL,
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ),
            *(
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=test",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
            ),
            *("-keyout", str(path), "-out", str(tmp_path / "ca.pem")),
        ],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + (tmp_path / "ca.pem").read_text())
    return path


@pytest.fixture
def url(certificate: Path) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), _Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"https://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def _value(settings: PrometheusSettings) -> float | str | None:
    client = Prometheus(settings)
    try:
        result = client.query([Query(name="q", expr="q")], 1.0)[0]
    finally:
        client.close()
    return result.missing if result.missing else result.readings[0].value


def test_an_unknown_certificate_is_refused_with_a_reason(url: str) -> None:
    found = _value(PrometheusSettings(url=url, limit_s=20.0))
    assert isinstance(found, str)
    assert "certificate verify failed" in found.lower()


def test_a_bundle_of_ones_own_is_trusted(url: str, certificate: Path) -> None:
    bundle = certificate.with_name("ca.pem")
    assert _value(PrometheusSettings(url=url, ca_file=bundle, limit_s=20.0)) == 7.0


def test_verification_can_be_turned_off(url: str) -> None:
    assert _value(PrometheusSettings(url=url, verify=False, limit_s=20.0)) == 7.0
