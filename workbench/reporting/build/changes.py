"""Inputs of an artifact, recorded so that it is made again only after one of them has changed."""

import hashlib
import json
from functools import cache
from pathlib import Path

import workbench
from workbench import plugins
from workbench.files import read_json, write_json
from workbench.reporting.build.pages import read_record
from workbench.reporting.paper import folder_of
from workbench.runs.store import Run, find_runs
from workbench.shipped import shipped

_FILE = "made-of.json"
_PACKAGES = ("reporting", "lab", "features", "evaluation")  # with code that plots and measures
_NUMBERS = "reports/paper.yml"


def is_unchanged(name: str, notebook: Path, scale: str, root: Path, folder: Path, score: bool = False) -> bool:
    """Whether the figure in `folder` was made from the current inputs and, with `score`, after computing scores."""
    own = folder / folder_of(name)
    try:
        record, inputs = read_record(own), read_json(own / _FILE)
    except ValueError:  # never made, or damaged
        return False
    scored = inputs.pop("scored", False)
    return inputs == _inputs(name, notebook, scale, root, record) and (scored or not score)


def record_inputs(name: str, notebook: Path, scale: str, root: Path, folder: Path, score: bool = False) -> None:
    """Record the inputs of the figure in its `folder`, and whether scores were computed first."""
    write_json(folder / _FILE, {"scored": score, **_inputs(name, notebook, scale, root, read_record(folder))})


def _inputs(name: str, notebook: Path, scale: str, root: Path, record: dict) -> dict:
    runs = {run["name"]: _state(Run(root / run["name"])) for run in record["runs"]}
    return {
        "scale": scale,
        "notebook": _digest(notebook.read_bytes()),
        "code": _code(),
        "source": _digest(plugins.source("figure", name)),  # of a figure of another package; the code covers ours
        "runs": runs,
        # If runs are missing, a new run may be one of them.
        "others": sorted(run.name for run in find_runs(root)) if record["missing"] else None,
    }


def _state(run: Run) -> str | None:
    """Digest of the scores and steps of a run; None if it no longer exists."""
    try:
        results = run.folder / "results.jsonl"
        scores = results.read_bytes() if results.is_file() else b""
        state = [run.fingerprint, [c.step for c in run.checkpoints], run.status["state"], _digest(scores)]
    except ValueError:
        return None
    return _digest(json.dumps(state).encode())


@cache
def _code() -> str:
    package = Path(workbench.__file__).parent
    files = sorted(
        path for name in _PACKAGES for path in (package / name).rglob("*") if path.suffix in (".py", ".js", ".css")
    )
    return _digest(b"".join(path.read_bytes() for path in [*files, shipped(_NUMBERS)]))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
