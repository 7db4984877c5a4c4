"""Tag, annotate, trash and restore runs."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from workbench.config import Config
from workbench.files import is_locked, write_json
from workbench.runs.records import read_notes_file
from workbench.runs.state import STARTER_LOCK, TRAINER_LOCK
from workbench.runs.store import Run, find_teacher, run_folders

TRASH = ".trash"


def read_notes(run: Run) -> dict[str, Any]:
    """Read ``notes.json``, the run's tags and notes; empty if there are none."""
    return read_notes_file(run.folder)


def set_notes(run: Run, tags: Iterable[str] | None = None, notes: str | None = None) -> None:
    """Replace the tags, the notes or both; None keeps the old value. A damaged file is replaced if both are given."""
    given = {"tags": None if tags is None else sorted(set(tags)), "notes": notes}
    given = {key: value for key, value in given.items() if value is not None}
    try:
        kept = {} if len(given) == 2 else read_notes(run)
    except ValueError as error:
        raise ValueError(f"{error}; give both tags and text to replace it") from error
    write_json(run.folder / "notes.json", kept | given)


def trash(run: Run, force: bool = False) -> Path:
    """Move a run, even a damaged one, to the trash folder beside it and return its new path.

    Raises ValueError if a process holds the run or, without ``force``, if it is the teacher of other runs.
    """
    if any(is_locked(run.folder / lock) for lock in (TRAINER_LOCK, STARTER_LOCK)):
        raise ValueError(f"run {run.name} is held by a process: `workbench stop {run.name}` first")
    students = [] if force else _students(run)
    if students:
        raise ValueError(f"run {run.name} is the teacher of {', '.join(students)}, which could not be resumed")
    target = run.folder.parent / TRASH / run.name
    if os.path.lexists(target):
        raise ValueError(f"{target} holds an earlier run with that name: remove or restore it first")
    target.parent.mkdir(exist_ok=True)
    os.rename(run.folder, target)
    return target


def trashed(root: Path) -> list[str]:
    """Names of the runs in the trash."""
    return [folder.name for folder in run_folders(root / TRASH)]


def restore(name: str, root: Path) -> Run:
    """Restore a run from the trash; ValueError if it is not there or a run with that name exists."""
    source, target = root / TRASH / name, root / name
    if name not in trashed(root):
        raise ValueError(f"run {name!r} is not in the trash; it holds: {', '.join(trashed(root)) or 'nothing'}")
    if target.exists():
        raise ValueError(f"{target} already exists: a run with that name was created since")
    os.rename(source, target)
    return Run(target)


def _students(run: Run) -> list[str]:
    """Names of the runs whose ``config.yaml`` names ``run`` as teacher; their other files may be damaged."""
    root, names = run.folder.parent, []
    for folder in run_folders(root):
        if folder.name == run.name:
            continue
        with suppress(ValueError, OSError):  # its configuration is damaged, or its teacher no longer exists
            config = Run(folder).config
            reference = config.objective.options.get("teacher")
            if reference is not None and _has_teacher(config, str(reference), run, root):
                names.append(folder.name)
    return names


def _has_teacher(config: Config, reference: str, run: Run, root: Path) -> bool:
    if Path(reference).name == run.name:
        return True
    return find_teacher(config, root).fingerprint == run.fingerprint
