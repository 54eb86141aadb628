"""Tables of a predictor on disk: one file per question, whole or not at all.

A file is named by the digest of its question and holds the question again, so that a changed
question is another file and a foreign file is noticed. What cannot be read is set aside under
another name, once, and asked for anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MOST_BYTES = 16 << 20
MOST_FILES = 200


class TableCache:
    """A folder of tables. A folder that cannot be written costs time, not service.

    version: of whatever makes the tables; another one is another question.
    """

    def __init__(self, folder: Path, version: str) -> None:
        self._folder = folder
        self._version = version
        self._complained = False

    def get(self, question: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer that was kept; None if there is none or it cannot be used."""
        path = self._path(question)
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES:,} bytes")
            document = json.loads(path.read_bytes())
            if document["question"] != self._asked(question):
                raise ValueError("it answers another question")
            answer = document["answer"]
            if document["sha256"] != _digest(answer):
                raise ValueError("its checksum is wrong")
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(f"{path}: {error.strerror or error}")
            return None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self.set_aside(question, f"{type(error).__name__}: {error}")
            return None
        return dict(answer)

    def put(self, question: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Keep an answer, and forget the oldest where there are too many."""
        document = {
            "question": self._asked(question),
            "sha256": _digest(answer),
            "answer": dict(answer),
        }
        path = self._path(question)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(document, file, allow_nan=False)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            self._forget()
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            self._complain(f"{self._folder}: {error.strerror or error}")

    def set_aside(self, question: Mapping[str, Any], why: str) -> None:
        """Move a file that cannot be used out of the way."""
        path = self._path(question)
        log.warning("a kept table is set aside", extra={"path": str(path), "why": why[:200]})
        try:
            path.replace(path.with_suffix(".corrupt"))
        except OSError as error:
            self._complain(f"{path}: {error.strerror or error}")

    def _asked(self, question: Mapping[str, Any]) -> dict[str, Any]:
        # Through JSON, so that it compares with what is read back.
        asked: dict[str, Any] = json.loads(json.dumps({"version": self._version, **question}))
        return asked

    def _path(self, question: Mapping[str, Any]) -> Path:
        return self._folder / f"{_digest(self._asked(question))[:32]}.json"

    def _forget(self) -> None:
        kept = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in kept[: max(0, len(kept) - MOST_FILES)]:
            path.unlink(missing_ok=True)

    def _complain(self, why: str) -> None:
        if not self._complained:
            log.warning("tables are not kept", extra={"why": why})
        self._complained = True


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
