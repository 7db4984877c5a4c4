"""Read and check the records in a run's files, so that callers get the types that they expect.

Each function returns the content of its file or raises a ValueError that names the file, the line and the field.
Imports nothing heavy.
"""

import os
import re
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from workbench.config.older import modern
from workbench.files import damaged, parse_line, read_json, read_jsonl

SMALL = 16_000_000  # bytes: limit for a file with one record, a thousand times what we write
_LARGEST = 2**63  # larger integers fit no array and may overflow as a float
_KINDS = {int: "a whole number", float: "a finite number", Real: "a number", str: "text", bool: "true or false"}
_KINDS |= {list: "a list", dict: "a mapping"}
_LOGGED = {int, float, type(None)}
_FINGERPRINT = re.compile("[0-9a-f]{16}")
_LATENTS = {"channels": int, "height": int, "classes": list, "vae": dict, "pixel_channels": int}
_EVENT = {"processes": int, "queue": bool, "devices": list, "after": str, "command": int, "option": str, "by": str}
_STATUS = {"pid": int, "updated": float, "steps": int, "processes": int, "rate": float, "seconds": float}
_STATUS |= {"answer": dict, "earlier": int, "error": str, "remark": str, "after": str}
_RESULT = {"step": int, "layer": int, "low": Real, "high": Real, "floor": Real, "n_generated": int}
_ANSWER = {"number": int, "what": str, "result": str, "step": int}


def check_fields(
    record: Mapping[str, Any],
    name: Path | str,
    needed: Mapping[str, type],
    optional: Mapping[str, type] | None = None,
    line: int | None = None,
) -> None:
    """Raise ValueError, naming the record ``name``, unless it has every ``needed`` field and all types are right.

    A ``float`` field must be finite and may be an int, but not a bool; a ``Real`` field may be infinite or NaN. Fields
    in ``optional`` may be missing or null.
    """
    for key, kind in needed.items():
        if key not in record:
            raise damaged(name, f"it lacks {key}", line)
        _check(record[key], kind, name, key, line)
    for key, kind in (optional or {}).items():
        if record.get(key) is not None:
            _check(record[key], kind, name, key, line)


def read_provenance(folder: Path) -> dict[str, Any]:
    """Read ``provenance.json``: fingerprint, date, versions, machine, latents."""
    file = folder / "provenance.json"
    record = read_json(file, SMALL)
    if isinstance(record.get("latents"), dict):
        record["latents"] = modern(record["latents"])
    check_provenance(record, file)
    return record


def check_provenance(record: Mapping[str, Any], name: Path | str) -> None:
    """Raise ValueError, naming the record ``name``, unless it is a run's provenance."""
    check_fields(
        record, name, {"fingerprint": str, "created": float}, {"latents": dict, "origin": dict, "decided": dict}
    )
    if not _FINGERPRINT.fullmatch(record["fingerprint"]):
        shown = record["fingerprint"][:40]
        raise damaged(name, f"a fingerprint has 16 digits of 0-9 and a-f; it has {shown!r}")
    if record.get("latents") is not None:
        check_fields(modern(record["latents"]), name, _LATENTS)


def read_status_record(folder: Path) -> dict[str, Any]:
    """Read ``status.json`` as it was written: state, step, host and optional fields of the process."""
    file = folder / "status.json"
    record = read_json(file, SMALL)
    check_fields(record, file, {"state": str, "step": int, "host": str}, _STATUS)
    if record.get("answer") is not None:
        check_fields(record["answer"], file, _ANSWER)
        record["answer"] = {key: record["answer"][key] for key in _ANSWER}
    return record


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl``, without a last line that a crash cut short."""
    return _checked(folder / "metrics.jsonl", check_metrics)


def parse_metrics(line: bytes, file: Path, number: int) -> dict[str, Any]:
    """Parse and check one line of ``metrics.jsonl``."""
    record = parse_line(line, file, number)
    check_metrics(record, file, number)
    return record


def check_metrics(record: Mapping[str, Any], file: Path | str, line: int | None) -> None:
    """Raise ValueError unless the record has a step, and numbers or null."""
    # There may be millions of records, so a fast check comes first.
    values = record.values()
    plain = type(record.get("step")) is int and {type(value) for value in values} <= _LOGGED
    if plain and "".join(record).isascii() and max(map(abs, filter(None, values)), default=0) < _LARGEST:
        return
    check_fields(record, file, {"step": int}, dict.fromkeys(record, Real), line)
    for name in record:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise damaged(file, f"{name!r} is not a valid metric name", line)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Read ``results.jsonl``: scores, each with how it was measured."""
    return _checked(folder / "results.jsonl", check_result)


def check_result(record: Mapping[str, Any], file: Path | str, line: int | None) -> None:
    """Raise ValueError unless the record is a score."""
    check_fields(record, file, {"metric": str, "value": Real}, _RESULT, line)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Read ``history.jsonl``: the events of a run, oldest first."""
    return _checked(folder / "history.jsonl", check_event)


def check_event(record: Mapping[str, Any], file: Path | str, line: int | None) -> None:
    """Raise ValueError unless the record is an event of a run's history."""
    check_fields(record, file, {"what": str, "step": int}, _EVENT, line)
    if record["what"] == "set":
        check_fields(record, file, {"option": str, "new": object}, line=line)
    for device in record.get("devices") or ():
        _check(device, int, file, "devices", line)


def read_notes_file(folder: Path) -> dict[str, Any]:
    """Read ``notes.json``, the run's tags and notes; empty if there are none."""
    file = folder / "notes.json"
    record = read_json(file, SMALL) if os.path.lexists(file) else {}
    notes = {"tags": record.get("tags", []), "notes": record.get("notes", "")}
    check_fields(notes, file, {"tags": list, "notes": str})
    for tag in notes["tags"]:
        _check(tag, str, file, "tags", None)
    return notes


def _checked(file: Path, check: Callable[[Mapping[str, Any], Path, int], None]) -> list[dict[str, Any]]:
    records = read_jsonl(file)
    for number, record in enumerate(records, start=1):
        check(record, file, number)
    return records


def _check(value: Any, kind: type, name: Path | str, key: str, line: int | None) -> None:
    if kind is object:
        return
    right = isinstance(value, int | float) and value - value == 0 if kind is float else isinstance(value, kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        raise damaged(name, f"{key} must be {_KINDS[kind]}; it is {repr(value)[:60]}", line)
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise damaged(name, f"{key} is too large", line)
