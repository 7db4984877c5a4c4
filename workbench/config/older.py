"""Records that were written before a word changed, read with the word of today."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_KEYS = {"codec": "vae"}  # sections of a configuration, and what a run and encoded images say of themselves


def modern(record: Mapping[str, Any]) -> dict[str, Any]:
    """``record`` with today's keys; one that has both the old and the new key keeps both, and is refused later."""
    old = {key: new for key, new in _KEYS.items() if key in record and new not in record}
    return {old.get(key, key): value for key, value in record.items()}


def file_in(folder: Path, name: str) -> Path:
    """The file ``name`` in ``folder``, or that of its old name if only that one is there."""
    for old, new in _KEYS.items():
        before = folder / name.replace(f"{new}.", f"{old}.")
        if name.startswith(f"{new}.") and before.is_file() and not (folder / name).is_file():
            return before
    return folder / name
