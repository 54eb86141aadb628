"""Dynamo's own frontends and mock workers, on free ports of loopback."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from wattline.live.environment import Environment
from wattline.live.processes import free_ports

MODEL = "Tiny"
WITHIN_S = 90.0
_BLOCKS = 512


class MockStack:
    """One prefill and one decode worker, and as many frontends as are started."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        self._environment = environment
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._started = 0
        self.workers = [self._worker("prefill"), self._worker("decode")]

    def frontend(self, port: int | None = None) -> str:
        """Start another frontend; its address once it serves."""
        port = port or free_ports(1)[0]
        self._start(
            "dynamo.frontend",
            *("--http-host", "127.0.0.1", "--http-port", str(port), "--router-mode", "kv"),
        )
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: MODEL in get(url, "/v1/models")[1], self._logs)
        return url

    def _logs(self) -> str:
        texts = (log.read_text(errors="replace")[-2000:] for log in self._folder.glob("*.log"))
        return "the frontend knows no model:\n" + "\n".join(texts)

    def stop_newest(self) -> None:
        """Kill what was started last."""
        process = self._processes.pop()
        process.kill()
        process.wait(WITHIN_S)

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _worker(self, role: str) -> str:
        port = free_ports(1)[0]
        self._start(
            "dynamo.mocker",
            *("--model-path", str(self._environment.model_dir), "--model-name", MODEL),
            *("--num-gpu-blocks-override", str(_BLOCKS), "--disaggregation-mode", role),
            *(("--bootstrap-ports", str(free_ports(1)[0])) if role == "prefill" else ()),
            system_port=port,
        )
        return f"http://127.0.0.1:{port}"

    def _start(self, module: str, *arguments: str, system_port: int | None = None) -> None:
        env = {**os.environ, **self._environment.variables(self._folder / "kv"), "DYN_LOG": "warn"}
        if system_port is not None:
            env["DYN_SYSTEM_PORT"] = str(system_port)
        self._started += 1
        log = self._folder / f"{module}-{self._started}.log"
        with log.open("wb") as output:
            self._processes.append(
                subprocess.Popen(
                    [str(self._environment.python), "-m", module, *arguments],
                    env=env,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )


def complete(url: str, prompt: str, max_tokens: int) -> tuple[int, dict[str, Any]]:
    """One completion: status and the answer's usage."""
    document = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens}
    status, text = get(url, "/v1/completions", document)
    usage = json.loads(text).get("usage") if status == 200 else None
    return status, usage or {}


def complete_at_once(url: str, prompts: list[str], max_tokens: int) -> list[tuple[int, Any]]:
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda prompt: complete(url, prompt, max_tokens), prompts))


def get(url: str, path: str, document: dict[str, Any] | None = None) -> tuple[int, str]:
    """Status and text; a POST where there is a document. Status 0: nobody listens."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=WITHIN_S)
    try:
        body = None if document is None else json.dumps(document)
        headers = {"Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


def wait_until(
    done: Callable[[], bool], why: Callable[[], str] = lambda: "it did not come to pass"
) -> None:
    end_s = time.monotonic() + WITHIN_S
    while not done():
        assert time.monotonic() < end_s, why()
        time.sleep(0.1)
