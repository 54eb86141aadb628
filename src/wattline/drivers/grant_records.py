"""The coordinator's records as the JSON objects that its log on disk holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from wattline.core.errors import InputError
from wattline.grants.records import Compacted, Granted, Lowered, Opened, Record, Released


def encode_record(record: Record[str]) -> dict[str, Any]:
    """A record as plain JSON, the reverse of `decode_record`."""
    if isinstance(record, Opened):
        return {"kind": "opened", "epoch": record.epoch}
    if isinstance(record, Granted):
        return {
            "kind": "granted",
            "epoch": record.epoch,
            "gpu": record.gpu,
            "incarnation": record.incarnation,
            "sequence": record.sequence,
            "watts_mw": record.watts_mw,
            "booked_mw": record.booked_mw,
        }
    if isinstance(record, Lowered):
        return {
            "kind": "lowered",
            "epoch": record.epoch,
            "gpu": record.gpu,
            "booked_mw": record.booked_mw,
        }
    if isinstance(record, Released):
        return {
            "kind": "released",
            "epoch": record.epoch,
            "gpu": record.gpu,
            "by": record.by,
            "why": record.why,
        }
    return {"kind": "compacted", "epoch": record.epoch, "booked_mw": dict(record.booked_mw)}


def decode_record(entry: object, where: str) -> Record[str]:
    """A record out of plain JSON; InputError for one that cannot be meant."""
    if not isinstance(entry, dict):
        raise InputError(where, entry, "a record must be an object")
    kind = entry.get("kind")
    try:
        epoch = _count(entry["epoch"])
        if kind == "opened":
            return Opened(epoch)
        if kind == "compacted":
            bookings = entry["booked_mw"].items()
            return Compacted(epoch, tuple((_text(gpu), _count(mw)) for gpu, mw in bookings))
        gpu = _text(entry["gpu"])
        if kind == "released":
            return Released(epoch, gpu, _text(entry["by"]), _text(entry["why"]))
        booked_mw = _count(entry["booked_mw"])
        if kind == "lowered":
            return Lowered(epoch, gpu, booked_mw)
        if kind == "granted":
            return Granted(
                epoch,
                gpu,
                _count(entry["incarnation"]),
                _count(entry["sequence"]),
                _count(entry["watts_mw"]),
                booked_mw,
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(where, str(error), "a record that cannot be meant") from None
    raise InputError(where, kind, "a kind of record that this version does not know")


def decode_records(entries: Iterable[object], where: str) -> list[Record[str]]:
    """All records of a log, in order."""
    return [
        decode_record(entry, f"{where}, record {number}")
        for number, entry in enumerate(entries, start=1)
    ]


def _count(found: object) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise TypeError(f"{found!r} is no whole number of 0 or more")
    return found


def _text(found: object) -> str:
    if not isinstance(found, str):
        raise TypeError(f"{found!r} is no text")
    return found
