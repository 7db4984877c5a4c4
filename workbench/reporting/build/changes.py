"""What an artifact was made of, so that it is made again only when some of that has changed."""

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
_PACKAGES = ("reporting", "lab", "features", "evaluation")  # whose code draws and measures
_NUMBERS = "reports/paper.yml"


def is_unchanged(name: str, notebook: Path, scale: str, root: Path, folder: Path, score: bool = False) -> bool:
    """Whether the figure of this name in `folder` was made of what there is now; with `score`, and scored first."""
    place = folder / folder_of(name)
    try:
        record, of = read_record(place), read_json(place / _FILE)
    except ValueError:  # never made, or damaged
        return False
    scored = of.pop("scored", False)
    return of == _made_of(name, notebook, scale, root, record) and (scored or not score)


def note_what_it_is_of(name: str, notebook: Path, scale: str, root: Path, place: Path, score: bool = False) -> None:
    """Write down, beside the figure in `place`, what it was made of, and whether that was scored first."""
    write_json(place / _FILE, {"scored": score, **_made_of(name, notebook, scale, root, read_record(place))})


def _made_of(name: str, notebook: Path, scale: str, root: Path, record: dict) -> dict:
    used = {run["name"]: _state(Run(root / run["name"])) for run in record["runs"]}
    return {
        "scale": scale,
        "notebook": _digest(notebook.read_bytes()),
        "code": _code(),
        "source": _digest(plugins.source("figure", name)),  # of a figure of another package; ours are in the code
        "runs": used,
        # Where runs are missing, any that has come since may be one of them.
        "others": sorted(run.name for run in find_runs(root)) if record["missing"] else None,
    }


def _state(run: Run) -> str | None:
    """Scores and steps of a run; None if it is gone."""
    try:
        results = run.folder / "results.jsonl"
        scores = results.read_bytes() if results.is_file() else b""
        kept = [run.fingerprint, [c.step for c in run.checkpoints], run.status["state"], _digest(scores)]
    except ValueError:
        return None
    return _digest(json.dumps(kept).encode())


@cache
def _code() -> str:
    package = Path(workbench.__file__).parent
    files = sorted(
        path for name in _PACKAGES for path in (package / name).rglob("*") if path.suffix in (".py", ".js", ".css")
    )
    return _digest(b"".join(path.read_bytes() for path in [*files, shipped(_NUMBERS)]))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
