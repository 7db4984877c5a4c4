"""Code snippets that open runs, to paste into a cell."""

import json
from collections.abc import Sequence

from workbench.runs.store import Run, open_run


def named(runs: Sequence[Run]) -> list[str]:
    """Each run as a Python string literal that `open_run` accepts: its name, else its path."""
    return [json.dumps(_reference(run), ensure_ascii=False) for run in runs]


def calling(function: str, arguments: str) -> str:
    """Snippet that calls one function of the package."""
    return f"import workbench as wb\n\nwb.{function}({arguments})\n"


def _reference(run: Run) -> str:
    try:
        known = open_run(run.name).folder.resolve() == run.folder.resolve()
    except ValueError:
        known = False
    return run.name if known else str(run.folder.resolve())
