"""The nodes' reports: where they come from, and how old what they say is."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from wattline.controller.settings import NodeSpec
from wattline.core.errors import InputError, WattlineError
from wattline.drivers.grant_files import GpuReport, NodeReport, decode_report
from wattline.drivers.trusted_files import read_trusted

_MOST_BYTES = 4 << 20


class FileNode:
    """A report in a file that the node's agent replaces."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path

    def read(self) -> NodeReport:
        """The newest report."""
        content = read_trusted(self._path, max_bytes=_MOST_BYTES)
        return decode_report(content, node=self._name, where=str(self._path))


class HttpNode:
    """A report that the node's agent answers with. `limit_s`: of each step of the call."""

    def __init__(self, name: str, url: str, token_file: Path | None, limit_s: float) -> None:
        self._name = name
        self._url = url
        self._token_file = token_file
        self._limit_s = limit_s
        # Proxies of the environment are for others: an agent is asked directly.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def read(self) -> NodeReport:
        """The newest report."""
        request = urllib.request.Request(self._url)
        if self._token_file is not None:
            token = self._token_file.read_text(encoding="utf-8").strip()
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with self._opener.open(request, timeout=self._limit_s) as answer:
                content = answer.read(_MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise WattlineError(f"{self._url}: answers {error.code} {error.reason}") from None
        except urllib.error.URLError as error:
            raise WattlineError(f"{self._url}: {error.reason}") from None
        if len(content) > _MOST_BYTES:
            raise InputError(self._url, f"over {_MOST_BYTES} bytes", "too large for a report")
        return decode_report(content, node=self._name, where=self._url)


def open_node(spec: NodeSpec, limit_s: float) -> FileNode | HttpNode:
    """The source of a node's reports."""
    if spec.report_file is not None:
        return FileNode(spec.name, Path(spec.report_file))
    assert spec.report_url is not None
    token_file = None if spec.token_file is None else Path(spec.token_file)
    return HttpNode(spec.name, spec.report_url, token_file, limit_s)


class NodeWatch:
    """What is known of one node.

    A report counts as news only with a number that was not seen: an old file that lies there, or an
    agent that answers without looking, makes nothing younger.
    """

    def __init__(self, name: str, silent_after_s: float) -> None:
        self.name = name
        self.report: NodeReport | None = None
        self.heard_s: float | None = None
        self.why: str | None = None
        self._silent_after_s = silent_after_s
        self._newest: tuple[int, int] | None = None

    def hear(self, report: NodeReport, now_s: float) -> bool:
        """Take a report in; True if it is news."""
        self.why = None
        number = (report.incarnation, report.report_sequence)
        if number == self._newest:
            return False
        self._newest, self.report, self.heard_s = number, report, now_s
        return True

    def miss(self, why: str) -> None:
        """Note that a reading failed."""
        self.why = why

    def age_s(self, now_s: float) -> float | None:
        """Age of the newest news; None: never heard."""
        return None if self.heard_s is None else max(0.0, now_s - self.heard_s)

    def silent(self, now_s: float) -> str | None:
        """Why the node's limits are not known now; None: they are."""
        age_s = self.age_s(now_s)
        if age_s is None:
            return f"node {self.name}: no report yet{self._because}"
        if age_s > self._silent_after_s:
            return f"node {self.name}: its newest report is {age_s:.0f} s old{self._because}"
        return None

    @property
    def _because(self) -> str:
        return "" if self.why is None else f" ({self.why})"

    def gpu(self, uuid: str) -> GpuReport | None:
        """What the newest report says of a GPU."""
        if self.report is None:
            return None
        return next((entry for entry in self.report.gpus if entry.gpu == uuid), None)
