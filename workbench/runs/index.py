"""Runs at a glance: one row a run, read from their folders through an index that can be thrown away.

``.index.json`` in the runs folder keeps what was read from each file beside the file's time, size and number; a file
that changed is read again, so the rows are the same with the index, without it, and whoever changed the folders.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from workbench.config import load_config, presets
from workbench.files import read_json, read_jsonl, write_atomically
from workbench.runs.state import read_status
from workbench.runs.store import run_fingerprint

_INDEX = ".index.json"
_VERSION = 1  # of what the index keeps
_TAIL = 16_384  # bytes that hold the last record of metrics.jsonl


@dataclass(frozen=True)
class RunRow:
    """A run in a table. ``seconds`` is its own training, ``cost`` that and its teacher's, up to the step that taught.

    ``scores`` are the newest by metric, those of a layer as "metric of layer n". ``damage`` says what cannot be read.
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
        """A column by its name, or a score by its metric's; None if the run has none."""
        return getattr(self, column) if hasattr(self, column) else dict(self.scores).get(column)


def runs_table(root: Path) -> list[RunRow]:
    """A row for each run under ``root``, oldest first; damaged ones are rows that say so."""
    known = _load(root)
    seen: dict[str, dict] = {}
    records = []
    for file in root.glob("*/provenance.json"):
        kept = _Kept(known.get(file.parent.name, {}))
        with contextlib.suppress(FileNotFoundError):  # moved away meanwhile
            records.append(_record(file.parent, kept))
            seen[file.parent.name] = kept.entries
    if seen != known:
        _save(root, seen)
    teachers = {key: record for record in records for key in (record["name"], record["fingerprint"])}
    known_presets = frozenset(presets())
    rows = [_row(record, _teacher(record, teachers, root, known_presets)) for record in records]
    return sorted(rows, key=lambda row: (row.created, row.name))


class _Kept:
    """What was read from a run's files, by file, with the marks that tell a changed one."""

    def __init__(self, entries: dict[str, dict]):
        self._old, self.entries = entries, {}

    def read(self, file: Path, reader: Callable[[Path], Any]) -> Any:
        """What ``reader`` makes of the file, read again only if it changed; None if there is none."""
        try:
            found = os.stat(file)
        except FileNotFoundError:
            return None
        mark = [found.st_mtime_ns, found.st_size, found.st_ino]
        entry = self._old.get(file.name)
        if entry is None or entry["mark"] != mark:
            entry = {"mark": mark, "value": reader(file)}
        self.entries[file.name] = entry
        return entry["value"]


def _record(folder: Path, kept: _Kept) -> dict[str, Any]:
    """Everything of a run that its row needs."""
    record: dict[str, Any] = {"name": folder.name, "folder": folder, "fingerprint": "", "created": 0.0}
    record |= {"state": "damaged", "step": 0, "damage": ""}
    try:
        record |= kept.read(folder / "provenance.json", _identity)
        record |= kept.read(folder / "config.yaml", _options) or {}
        record |= kept.read(folder / "metrics.jsonl", _last_metrics) or {}
        record["scores"] = tuple((name, value) for name, value in kept.read(folder / "results.jsonl", _scores) or ())
        record |= kept.read(folder / "notes.json", read_json) or {}
        # Never kept: whether the process lives is not in any file.
        status = read_status(folder)
        record |= {"state": status["state"], "step": status["step"], "remark": status.get("remark", "")}
        record["steps"] = status.get("steps") or record.get("steps")
        record["seconds"] = status.get("seconds") or record.get("seconds")
    except (ValueError, KeyError, TypeError) as error:
        record["damage"] = " ".join(str(error).split())
    return record


def _row(record: dict[str, Any], teacher: dict[str, Any] | None) -> RunRow:
    cost = record.get("seconds")
    if teacher and cost is not None and teacher.get("seconds") is not None:
        taught = record.get("teacher_step") or teacher["step"]
        cost += teacher["seconds"] * min(1.0, taught / max(teacher["step"], 1))
    fields = {key: value for key, value in record.items() if key in RunRow.__dataclass_fields__ and value is not None}
    name = teacher["name"] if teacher else record.get("teacher")
    return RunRow(**{**fields, "teacher": name, "cost": cost, "layers": tuple(record.get("layers", ())),
                     "tags": tuple(record.get("tags", ()))})  # fmt: skip


def _teacher(
    record: dict[str, Any], runs: dict[str, dict[str, Any]], root: Path, known_presets: frozenset[str]
) -> dict[str, Any] | None:
    """The record of the run that taught this one: by its folder's name, or as the run of a preset."""
    reference = record.get("teacher")
    if reference is None:
        return None
    if reference in known_presets:
        with contextlib.suppress(ValueError):  # the preset's own teacher is not here
            return runs.get(_preset_mark(reference, record.get("recipe"), root))
        return None
    return runs.get(Path(reference).name)


@lru_cache(maxsize=64)
def _preset_mark(name: str, recipe: str | None, root: Path) -> str:
    return run_fingerprint(load_config(name, [f"recipe={recipe}"] if recipe else []), root)


def _identity(file: Path) -> dict[str, Any]:
    record = read_json(file)
    return {"fingerprint": record["fingerprint"], "created": record["created"]}


def _options(file: Path) -> dict[str, Any]:
    """What a row shows of ``config.yaml``, read without the plug-ins that would check it."""
    try:
        tree = yaml.load(file.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        objective, backbone, training = tree["objective"], tree["backbone"], tree["training"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be used: {error}") from error
    layers = [objective[key] for key in ("layer", "teacher_layer") if isinstance(objective.get(key), int)]
    return {
        "method": objective["name"],
        "backbone": f"{backbone['name']}-{backbone['size']}" if backbone.get("size") else backbone["name"],
        "guidance_scale": objective.get("guidance_scale"),
        "layers": layers,
        "teacher": objective.get("teacher"),
        "teacher_step": objective.get("teacher_step"),
        "recipe": tree.get("recipe"),
        "seed": training["seed"],
        "steps": training["steps"],
    }


def _last_metrics(file: Path) -> dict[str, Any]:
    """Loss and seconds of the last whole line."""
    with file.open("rb") as handle:
        handle.seek(max(0, handle.seek(0, os.SEEK_END) - _TAIL))
        lines = handle.read().split(b"\n")[-2:]
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            return {"loss": record["loss"], "seconds": record["seconds"]}
    return {}


def _scores(file: Path) -> list[list]:
    """The newest value of each metric, as pairs."""
    newest: dict[str, float] = {}
    for record in read_jsonl(file):
        place = f" of layer {record['layer']}" if "layer" in record else ""
        newest[record["metric"] + place] = record["value"]
    return [[name, value] for name, value in newest.items()]


def _load(root: Path) -> dict[str, dict]:
    with contextlib.suppress(ValueError, OSError):
        index = read_json(root / _INDEX)
        if index.get("version") == _VERSION:
            return index["runs"]
    return {}


def _save(root: Path, runs: dict[str, dict]) -> None:
    try:
        write_atomically(root / _INDEX, json.dumps({"version": _VERSION, "runs": runs}).encode())
    except PermissionError:  # somebody else's folder: it is read each time
        pass
    except OSError as error:
        warnings.warn(f"the index of {root} was not written: {error}", stacklevel=3)
