"""State of a run for the live panel, read from its folder: status, curves, scores, samples and the tail of the log."""

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workbench.evaluation.metrics import find_metric, in_order
from workbench.evaluation.statistics import measured_alike
from workbench.lab.watching.log import last_shown
from workbench.lab.watching.thumbnails import newest_samples
from workbench.runs.curves import read_curves, thin
from workbench.runs.history import read_history, settings_of
from workbench.runs.state import LIVE, TRAINING
from workbench.runs.store import Run

POINTS = 1000  # of a curve in the page, more than one per pixel; a zoomed range is read again
OPENED = POINTS // 2  # of a curve when it is opened; it grows to POINTS, then it is read again


def panel_state(run: Run, since: int | None = None) -> dict[str, Any]:
    """Everything a panel shows of a run, ready for JSON; with `since`, only the points after that step.

    "curves" has steps and values by name, at most `OPENED` points each. "complete" is False if a long file was only
    sampled: call again. "error" names a damaged file; everything else is read all the same.
    """
    state: dict[str, Any] = sendable({"name": run.name, "folder": str(run.folder), "error": ""})
    for part, read in PARTS.items():
        try:
            state[part] = sendable(read(run))
        except (ValueError, OSError, KeyError) as error:
            state["error"] = _sentence(error)
    try:
        return state | curves_of(run, since)
    except ValueError as error:
        return {"curves": {}, "last": since, "complete": True} | state | {"error": _sentence(error)}


def curves_of(run: Run, since: int | None = None) -> dict[str, Any]:
    """The curves of `panel_state`, and "last", the newest logged step (or `since`)."""
    read = read_curves(run, OPENED, None if since is None else since + 1)
    curves: dict[str, list[list]] = {}
    last = since
    for name, (steps, values) in read.curves.items():
        pairs = [(int(s), short(v)) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
        if pairs:
            curves[name] = [[step for step, _ in pairs], [value for _, value in pairs]]
        last = max([last if last is not None else -1, *map(int, steps[-1:])])
    curves.pop("seconds", None)
    return {"curves": curves, "last": last, "complete": read.complete}


def finer_curves(run: Run, low: float | int, high: float | int) -> dict[str, list[list]]:
    """The curves between two steps, at most `POINTS` points each, with one point beyond each border."""
    curves: dict[str, list[list]] = {}
    for name, (steps, values) in read_curves(run, sys.maxsize).curves.items():
        first, last = max(0, int(np.searchsorted(steps, low)) - 1), int(np.searchsorted(steps, high, "right")) + 1
        steps, values = steps[first:last], values[first:last]
        chosen = thin(np.where(np.isfinite(values), values, np.nan), POINTS)
        if name != "seconds" and len(chosen):
            curves[name] = [[int(step) for step in steps[chosen]], [short(float(value)) for value in values[chosen]]]
    return curves


def points_of(records: Iterable[Mapping[str, Any]], after: int | None) -> dict[str, list[list]]:
    """Curves of new records, without the steps up to `after`."""
    curves: dict[str, list[list]] = {}
    for record in records:
        if after is not None and record["step"] <= after:
            continue
        for name, value in record.items():
            if name not in ("step", "seconds") and isinstance(value, int | float) and math.isfinite(value):
                steps, values = curves.setdefault(name, [[], []])
                steps.append(record["step"])
                values.append(short(value))
    return curves


def status_of(run: Run) -> dict[str, Any]:
    """State, step, speed and time left of a run, and which commands it accepts now."""
    status = run.status
    state, steps = status["state"], status.get("steps") or run.config.training.steps
    rate = status.get("rate")
    return {
        "state": state,
        "step": status["step"],
        "steps": steps,
        "images_per_second": short(rate * run.config.training.batch) if rate else None,
        "seconds_a_step": short(1 / rate) if rate else None,
        "left": short((steps - status["step"]) / rate) if rate and state == "running" else None,
        "seconds": status.get("seconds"),
        "host": status["host"],
        "remark": status.get("error") or status.get("remark") or "",
        "answer": status.get("answer"),
        "can": commands(state),
    }


def sendable(value: Any) -> Any:
    """A value that can be sent as JSON: lone surrogates, as in file names that are not UTF-8, are escaped."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {sendable(key): sendable(one) for key, one in value.items()}
    return [sendable(one) for one in value] if isinstance(value, list | tuple) else value


def commands(state: str) -> dict[str, bool]:
    """Which commands a run in this state accepts."""
    return {
        "pause": state == "running",
        "resume": state == "paused" or state not in (*LIVE, "finished"),
        "checkpoint": state in TRAINING,
        "stop": state in LIVE,
        "set": state != "finished",
    }


def scores_of(run: Run) -> dict[str, Any] | None:
    """The run's first metric in the order of the table of metrics, by step, with intervals where there are any.

    Only scores of one protocol make a curve (`measured_alike`). None without scores.
    """
    records = [record for record in run.results if record.get("layer") is None and record.get("step") is not None]
    names = [name for name in in_order({record["metric"] for record in records}) if find_metric(name)]
    if not names:
        return None
    alike = measured_alike({run.name: [record for record in records if record["metric"] == names[0]]})
    points = list(alike.records[run.name].values())
    return {
        "metric": names[0],
        "how": f"{points[-1].get('n_generated', '?')} images",
        "left_out": alike.left_out,
        "points": [[p["step"], *(short(p.get(key)) for key in ("value", "low", "high"))] for p in points],
        "floor": short(points[-1].get("floor")),
    }


def settings_now(run: Run) -> dict[str, Any]:
    """The options that can change during training, with their current values."""
    # A change acts from the current step, which is not logged yet; so the settings after the last change are taken.
    return settings_of(run.config, read_history(run.folder)).at(sys.maxsize)


def short(value: float | None) -> float | None:
    """A number rounded to six significant digits; None if it is missing or not finite."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def _sentence(error: Exception) -> str:
    return sendable(" ".join(str(error).split())) or type(error).__name__


PARTS: dict[str, Callable[[Run], Any]] = {
    "status": status_of,
    "scores": scores_of,
    "samples": newest_samples,
    "settings": settings_now,
    "log": lambda run: last_shown(run.folder / "log.txt"),
}
_FILES = {"scores": "results.jsonl", "samples": "samples", "settings": "history.jsonl", "log": "log.txt"}


def version_of(run: Run, part: str) -> tuple | None:
    """A value that changes with the file of a part, by one `stat`; None for the status, which can change without it."""
    if part not in _FILES:
        return None
    path: Path = run.folder / _FILES[part]
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
