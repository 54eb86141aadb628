"""The nodes' reports: where they come from, and how old what they say is."""

from __future__ import annotations

import re
from pathlib import Path

from wattline.controller.settings import NodeSpec
from wattline.core.errors import InputError, WattlineError
from wattline.drivers.grant_files import GpuReport, NodeReport, decode_report
from wattline.drivers.http_batch import Call, HttpBatch, Unanswered
from wattline.drivers.trusted_files import read_trusted

_MOST_BYTES = 4 << 20
_MOST_TOKEN_BYTES = 4096
_TOKEN = re.compile(r"[\x21-\x7e]+")


class FileNode:
    """A report in a file that the node's agent replaces."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path

    def read(self) -> NodeReport:
        """The newest report."""
        content = read_trusted(self._path, max_bytes=_MOST_BYTES)
        return decode_report(content, node=self._name, where=str(self._path))

    def close(self) -> None:
        """Nothing is open."""


class HttpNode:
    """A report that the node's agent answers with. `limit_s`: of the whole call.

    Redirects are not followed and proxies are not used: both would send the token somewhere else.
    """

    def __init__(self, name: str, url: str, token_file: Path | None, limit_s: float) -> None:
        self._name = name
        self._url = url
        self._token_file = token_file
        self._http = HttpBatch(limit_s=limit_s, most_bytes=_MOST_BYTES)

    def read(self) -> NodeReport:
        """The newest report."""
        headers = {}
        if self._token_file is not None:
            headers["Authorization"] = f"Bearer {_token(self._token_file)}"
        (answer,) = self._http.run([Call(self._url, headers=headers)])
        if isinstance(answer, Unanswered):
            raise WattlineError(answer.reason)
        if answer.status != 200:
            raise WattlineError(f"{self._url}: answers {answer.status}")
        return decode_report(answer.body, node=self._name, where=self._url)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


def _token(path: Path) -> str:
    with path.open("rb") as file:
        token = file.read(_MOST_TOKEN_BYTES).decode("ascii", "replace").strip()
    if not _TOKEN.fullmatch(token):
        raise InputError(str(path), "its content", "must be one token")
    return token


class ForeignNode:
    """A node whose agent is not ours: nothing is reported."""

    def read(self) -> NodeReport:
        """There is none."""
        raise WattlineError("its agent is not Wattline's")

    def close(self) -> None:
        """Nothing is open."""


def open_node(spec: NodeSpec, limit_s: float) -> FileNode | HttpNode | ForeignNode:
    """The source of a node's reports."""
    if not spec.reports:
        return ForeignNode()
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

    def draw_w(self, uuid: str, now_s: float) -> float | None:
        """Measured draw of a GPU by the newest report; None without a meter, or while silent."""
        entry = None if self.silent(now_s) is not None else self.gpu(uuid)
        return None if entry is None else entry.facts.draw_w
