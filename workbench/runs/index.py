"""Table of runs: one row per run, read from the run folders through an index file.

``.index.json`` in the runs folder caches what was read from each file, with the file's time, size and inode. A changed
file is read again, so the rows are the same with and without the index. It can be deleted at any time.
"""

import contextlib
import errno
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

from workbench.config import from_dict, load_config, presets, teacher_overrides
from workbench.config.reading import MAX_BYTES, parse_yaml
from workbench.files import (
    damaged,
    is_cut_short,
    open_regular,
    parse_mapping,
    read_file,
    read_json,
    write_atomically,
)
from workbench.runs.records import (
    check_fields,
    check_metrics,
    read_events,
    read_notes_file,
    read_provenance,
    read_results,
)
from workbench.runs.state import read_status
from workbench.runs.store import run_fingerprint, run_folders

_INDEX = ".index.json"
_VERSION = 2  # version of the index's format
_TAIL = 16_384  # bytes that contain the last record of metrics.jsonl
# Types of the fields of a row, checked again for values from the index, as its file may have been edited.
_FIELDS = {"fingerprint": str, "created": float, "method": str, "backbone": str, "guidance_scale": Real}
_FIELDS |= {"layers": list, "teacher": str, "teacher_step": int, "seed": int, "steps": int}
_INSIDE = {"layers": int, "tags": str, "scores": Real, "teacher_changes": str}
_FIELDS |= {"loss": Real, "seconds": Real, "scores": dict, "tags": list, "notes": str, "teacher_changes": list}


@dataclass(frozen=True)
class RunRow:
    """A run in the table. ``seconds`` is its training time, ``cost`` adds that of its teacher up to the step it uses.

    ``scores`` has the newest value of each metric, for layers as "metric of layer n". ``damage`` is the reason why the
    run cannot be read.
    """

    name: str
    folder: Path
    fingerprint: str
    created: float
    state: str
    step: int
    steps: int | None = None
    method: str = ""
    backbone: str = ""
    guidance_scale: float | None = None
    layers: tuple[int, ...] = ()
    teacher: str | None = None
    seed: int | None = None
    loss: float | None = None
    scores: tuple[tuple[str, float], ...] = ()
    seconds: float | None = None
    cost: float | None = None
    tags: tuple[str, ...] = ()
    notes: str = ""
    remark: str = ""
    damage: str = ""

    def value(self, column: str) -> Any:
        """Value of a column by name, or of a score by metric; None if the run has none."""
        return getattr(self, column) if column in self.__dataclass_fields__ else dict(self.scores).get(column)


def runs_table(root: Path) -> list[RunRow]:
    """A row for each run under ``root``, oldest first, damaged runs included.

    Raises ValueError if ``root`` cannot be read.
    """
    known = _load(root)
    seen: dict[str, dict] = {}
    records = []
    for folder in run_folders(root):
        record, entries = _record(folder, known.get(folder.name))
        if os.path.lexists(folder):  # else it was moved away meanwhile
            records.append(record)
            seen[folder.name] = entries
    if seen != known:
        _save(root, seen)
    teachers = {key: record for record in records for key in (record["name"], record["fingerprint"]) if key}
    known_presets = frozenset(presets())
    rows = [_row(record, _teacher(record, teachers, root, known_presets)) for record in records]
    return sorted(rows, key=lambda row: (row.created, row.name))


class _Kept:
    """Cached content of a run's files, by file name, with the version (time, size, inode) of each file."""

    def __init__(self, entries: dict[str, Any]):
        self._old = entries
        self.entries: dict[str, Any] = {}

    def read(self, file: Path, reader: Callable[[Path], dict[str, Any]], needed: bool = False) -> dict[str, Any]:
        """Result of ``reader``, cached while the file is unchanged; {} if the file is missing and not ``needed``."""
        try:
            stat = os.stat(file)
        except FileNotFoundError as error:
            if needed or os.path.lexists(file):
                raise ValueError(f"{file} {'does not exist' if needed else 'is a link to nothing'}") from error
            return {}
        version = [stat.st_mtime_ns, stat.st_size, stat.st_ino]
        entry = self._old.get(file.name)
        if not isinstance(entry, dict) or entry.get("mark") != version or not isinstance(entry.get("value"), dict):
            entry = {"mark": version, "value": reader(file)}
        _check_kept(entry["value"])
        self.entries[file.name] = entry
        return entry["value"]


def _record(folder: Path, known: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, dict]]:
    """The data of a run's row, and its entries for the index."""
    record: dict[str, Any] = {"name": folder.name, "folder": folder, "fingerprint": "", "created": 0.0}
    record |= {"state": "damaged", "step": 0, "damage": ""}
    kept = _Kept(known or {})
    try:
        record |= kept.read(folder / "provenance.json", _identity, needed=True)
        record |= kept.read(folder / "config.yaml", read_options, needed=True)
        # Not cached: whether the process is alive is not in any file.
        status = read_status(folder)
        record |= {"state": status["state"], "step": status["step"], "remark": status.get("remark") or ""}
        record |= {key: status[key] for key in ("steps", "seconds") if status.get(key)}
        logged = kept.read(folder / "metrics.jsonl", _last_metrics)
        record |= {"loss": logged.get("loss"), "seconds": record.get("seconds") or logged.get("seconds")}
        record |= kept.read(folder / "results.jsonl", _scores)
        record |= kept.read(folder / "notes.json", _notes)
        kept.read(folder / "history.jsonl", _history)
        _refuse_other_than_folder(folder / "checkpoints")
    except (ValueError, OSError) as error:
        if known:  # the index itself may be damaged
            return _record(folder, None)
        problem = f"{error.filename} cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
        record["damage"] = " ".join(problem.split())
    return record, kept.entries


def _row(record: dict[str, Any], teacher: dict[str, Any] | None) -> RunRow:
    cost = record.get("seconds")
    if teacher and cost is not None and teacher.get("seconds") is not None:
        taught = max(0, record.get("teacher_step") or teacher["step"])
        cost += teacher["seconds"] * min(1.0, taught / max(teacher["step"], 1))
    fields = {key: value for key, value in record.items() if key in RunRow.__dataclass_fields__ and value is not None}
    name = teacher["name"] if teacher else record.get("teacher")
    scores = tuple((name, float(value)) for name, value in record.get("scores", {}).items())
    fields |= {key: float(fields[key]) for key in ("created", "guidance_scale", "loss", "seconds") if key in fields}
    cost = None if cost is None else float(cost)
    return RunRow(**{**fields, "teacher": name, "cost": cost, "layers": tuple(record.get("layers", ())),
                     "tags": tuple(record.get("tags", ())), "scores": scores})  # fmt: skip


def _teacher(
    record: dict[str, Any], runs: dict[str, dict[str, Any]], root: Path, known_presets: frozenset[str]
) -> dict[str, Any] | None:
    """The record of this run's teacher, found by folder name or as the run of a preset."""
    reference = record.get("teacher")
    if reference is None:
        return None
    if reference in known_presets:
        with contextlib.suppress(ValueError, OSError):  # the preset's own teacher is missing
            return runs.get(_preset_fingerprint(reference, tuple(record.get("teacher_changes", ())), root))
        return None
    return runs.get(Path(reference).name)


@lru_cache(maxsize=64)
def _preset_fingerprint(name: str, changes: tuple[str, ...], root: Path) -> str:
    # The changes come from a run's files, so modules that they name must not be imported.
    return run_fingerprint(load_config(name, changes, named=False), root)


def _identity(file: Path) -> dict[str, Any]:
    record = read_provenance(file.parent)
    return {"fingerprint": record["fingerprint"], "created": record["created"]}


def read_options(file: Path) -> dict[str, Any]:
    """Options of ``config.yaml`` that a row shows, without loading plug-ins unless the teacher is a preset."""
    try:
        tree = parse_yaml(read_file(file, MAX_BYTES), "it").value
        objective, backbone, training = tree["objective"], tree["backbone"], tree["training"]
        layers = [objective[key] for key in ("layer", "teacher_layer") if isinstance(objective.get(key), int)]
        options = {
            "method": objective["name"],
            "backbone": f"{backbone['name']}-{backbone['size']}" if backbone.get("size") else backbone["name"],
            "guidance_scale": objective.get("guidance_scale"),
            "layers": layers,
            "teacher": objective.get("teacher"),
            "teacher_step": objective.get("teacher_step"),
            "seed": training["seed"],
            "steps": training["steps"],
        }
    except KeyError as error:
        raise ValueError(f"{file} cannot be used: it lacks {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be used: {error}") from error
    check_fields(options, file, {"method": str, "backbone": str}, _FIELDS)
    return {**options, "teacher_changes": _teacher_changes(tree)}


def _teacher_changes(tree: dict[str, Any]) -> list[str]:
    """Overrides that the run applies to its teacher's preset; empty if they cannot be determined."""
    if tree["objective"].get("teacher") in presets():
        with contextlib.suppress(ValueError):
            return list(teacher_overrides(from_dict(tree)))
    return []


def _last_metrics(file: Path) -> dict[str, Any]:
    """Loss and seconds of the last complete line."""
    with open_regular(file) as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - _TAIL))
        *whole, last = handle.read().split(b"\n")
    if len(whole) < 2 and size > _TAIL:
        raise damaged(file, f"its last line has more than {_TAIL:,} bytes")
    line = whole[-1] if whole and is_cut_short(last) else last  # the last line is usually empty or being written
    if is_cut_short(line) and not whole:
        return {}
    record = parse_mapping(line, f"the last line of {file}")
    check_metrics(record, file, None)
    return {"loss": record.get("loss"), "seconds": record.get("seconds")}


def _scores(file: Path) -> dict[str, Any]:
    """The newest value of each metric, of the run alone: not of samples that were guided against a weak model."""
    newest: dict[str, float] = {}
    for record in read_results(file.parent):
        if record.get("weak") is not None:
            continue
        layer = f" of layer {record['layer']}" if record.get("layer") is not None else ""
        newest[record["metric"] + layer] = record["value"]
    return {"scores": newest}


def _history(file: Path) -> dict[str, Any]:
    read_events(file.parent)  # a run with a damaged history cannot be resumed
    return {}


def _refuse_other_than_folder(path: Path) -> None:
    if os.path.lexists(path) and not path.is_dir():
        raise ValueError(f"{path} is damaged: it is not a folder")


def _notes(file: Path) -> dict[str, Any]:
    return read_notes_file(file.parent)


def _check_kept(value: dict[str, Any]) -> None:
    """Raise ValueError unless every field has the type that a row needs."""
    check_fields(value, _INDEX, {}, {key: _FIELDS[key] for key in value if key in _FIELDS})
    for key, kind in _INSIDE.items():
        inside = value.get(key)
        if inside:
            inside = inside if isinstance(inside, dict) else {str(number): one for number, one in enumerate(inside)}
            check_fields(inside, _INDEX, dict.fromkeys(inside, kind))


def _load(root: Path) -> dict[str, dict]:
    with contextlib.suppress(ValueError, OSError):
        index = read_json(root / _INDEX)
        if index.get("version") == _VERSION and isinstance(index.get("runs"), dict):
            return {name: entries for name, entries in index["runs"].items() if isinstance(entries, dict)}
    return {}


def _save(root: Path, runs: dict[str, dict]) -> None:
    try:
        write_atomically(root / _INDEX, json.dumps({"version": _VERSION, "runs": runs}).encode())
    except OSError as error:
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            return  # a read-only folder: its files are read each time
        warnings.warn(f"the index of {root} was not written: {error}", stacklevel=3)
