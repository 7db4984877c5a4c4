"""Order among runs: tags and notes, a trash folder and the way back."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workbench.files import is_locked, read_json, write_json
from workbench.runs.state import STARTER_LOCK, TRAINER_LOCK
from workbench.runs.store import Run, find_runs, find_teacher

TRASH = ".trash"


def read_notes(run: Run) -> dict[str, Any]:
    """``notes.json``: the run's tags and its notes, empty if nothing was noted."""
    file = run.folder / "notes.json"
    return {"tags": [], "notes": "", **(read_json(file) if file.is_file() else {})}


def set_notes(run: Run, tags: Iterable[str] | None = None, notes: str | None = None) -> None:
    """Replace the tags, the notes or both; what is None stays."""
    given = {"tags": None if tags is None else sorted(set(tags)), "notes": notes}
    write_json(run.folder / "notes.json", read_notes(run) | {k: v for k, v in given.items() if v is not None})


def trash(run: Run, force: bool = False) -> Path:
    """Move a run to the trash folder beside it and return where it is.

    Raises ValueError if a process holds it and, without ``force``, if it is the teacher of other runs.
    """
    if any(is_locked(run.folder / lock) for lock in (TRAINER_LOCK, STARTER_LOCK)):
        raise ValueError(f"run {run.name} is {run.status['state']}: `workbench stop {run.name}` first")
    students = [] if force else _students(run)
    if students:
        raise ValueError(f"run {run.name} is the teacher of {', '.join(students)}, which could not be resumed")
    target = run.folder.parent / TRASH / run.name
    if target.exists():
        raise ValueError(f"{target} holds an earlier run of that name: remove or restore it first")
    target.parent.mkdir(exist_ok=True)
    os.rename(run.folder, target)
    return target


def trashed(root: Path) -> list[str]:
    """Names of the runs in the trash."""
    return sorted(path.parent.name for path in (root / TRASH).glob("*/provenance.json"))


def restore(name: str, root: Path) -> Run:
    """Bring a run back from the trash; ValueError if it is not there or its place is taken."""
    source, target = root / TRASH / name, root / name
    if name not in trashed(root):
        raise ValueError(f"run {name!r} is not in the trash; it holds: {', '.join(trashed(root)) or 'nothing'}")
    if target.exists():
        raise ValueError(f"{target} is taken: a run of that name was made since")
    os.rename(source, target)
    return Run(target)


def _students(run: Run) -> list[str]:
    """Names of the runs that learn from ``run``."""
    found = []
    for other in find_runs(run.folder.parent):
        try:
            if other.config.objective.options.get("teacher") is not None:
                teacher = find_teacher(other.config, run.folder.parent)
                found += [other.name] if teacher.fingerprint == run.fingerprint else []
        except ValueError:  # damaged, or its teacher is gone already
            continue
    return found
