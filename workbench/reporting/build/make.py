"""Making a report: papermill executes one notebook for each figure or table of which something has changed."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import workbench
from workbench.config import refuse_unknown
from workbench.reporting import paper
from workbench.reporting.build.changes import is_unchanged, note_what_it_is_of
from workbench.reporting.build.pages import RECORD, read_record
from workbench.reporting.paper.runs import SCALES
from workbench.shipped import shipped


@dataclass(frozen=True)
class Made:
    """What became of one artifact, with the reason of the last two.

    "made", "kept" because nothing changed, "lacking" what it is made of, so that there is nothing to see, or "failed".
    """

    name: str
    state: str
    seconds: float
    done: int
    total: int
    reason: str = ""


def notebook() -> Path:
    """The notebook that makes a figure or table, by its name."""
    return shipped("notebooks/paper/figure.ipynb")


def make(
    scale: str,
    root: Path,
    folder: Path,
    only: Sequence[str] = (),
    workers: int | None = None,
    *,
    score: bool = False,
    force: bool = False,
) -> Iterator[Made]:
    """Make the artifacts of `scale` (those of `only`) from the runs under `root` into `folder`, each when it is done.

    `workers` notebooks at a time share the cores; with `score` they first score what an artifact shows and was not
    scored. One that fails, or of which nothing can be shown, leaves its last good form in place, and the others go on.
    What nothing changed for is kept, unless `force`. ValueError for an unknown scale or artifact.
    """
    refuse_unknown("scale", scale, SCALES)
    wanted = paper.chosen(only)
    folder.mkdir(parents=True, exist_ok=True)
    kept = [] if force else [name for name in wanted if is_unchanged(name, notebook(), scale, root, folder, score)]
    for done, name in enumerate(kept, start=1):
        lacks = lack_of(folder / paper.folder_of(name))
        yield Made(name, "lacking" if lacks else "kept", 0.0, done, len(wanted), lacks)
    workers = workers or max(1, (os.cpu_count() or 1) // 2 + 1)
    with ThreadPoolExecutor(workers) as pool:
        coming = [pool.submit(_make, name, scale, root, folder, workers, score) for name in wanted if name not in kept]
        try:
            for done, one in enumerate(as_completed(coming), start=len(kept) + 1):
                name, seconds, state, reason = one.result()
                yield Made(name, state, seconds, done, len(wanted), reason)
        finally:
            for one in coming:
                one.cancel()


def lack_of(place: Path) -> str:
    """What an artifact lacks of which there is nothing to see, with the commands that make it; "" for any other."""
    record = read_record(place)
    if record["figures"] or record["tables"]:
        return ""
    return " ".join([record["caption"], *(f"Missing: {one['what']}: {one['command']}" for one in record["missing"])])


def _make(name: str, scale: str, root: Path, folder: Path, workers: int, score: bool) -> tuple[str, float, str, str]:
    """Execute one notebook; name, seconds, state and reason. Its folder changes only if there is something to see.

    Or if there was nothing before: what was made of more than there is now is not thrown away.
    """
    began, place = time.monotonic(), folder / paper.folder_of(name)
    fresh = folder / f".{place.name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    executed = fresh / f"{place.name}.ipynb"
    command = [sys.executable, "-m", "papermill", str(notebook()), str(executed), "--kernel", "python3"]
    command += ["--no-progress-bar", "-p", "name", name, "-p", "scale", scale, "-p", "folder", str(fresh.resolve())]
    command += ["-p", "evaluate", "True"] if score else []
    # The package of this process, whatever is installed; as many threads as there are cores for it.
    packages = [str(Path(workbench.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    own = {"PYTHONPATH": os.pathsep.join(filter(None, packages)), "WORKBENCH_RUNS": str(root.resolve())}
    environment = {"OMP_NUM_THREADS": threads, **os.environ, **own}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    reason = _trouble(executed, done.stderr) if done.returncode or not (fresh / RECORD).is_file() else ""
    seconds = time.monotonic() - began
    if reason:
        return name, seconds, "failed", reason
    lacks = lack_of(fresh)
    if lacks and _shows_something(place):
        shutil.rmtree(fresh)
        return name, seconds, "lacking", f"{lacks} What was made before stays."
    note_what_it_is_of(name, notebook(), scale, root, fresh, score)
    _take_the_place(fresh, place)
    return name, seconds, "lacking" if lacks else "made", lacks


def _shows_something(place: Path) -> bool:
    try:
        return not lack_of(place)
    except ValueError:  # never made, or damaged
        return False


def _take_the_place(fresh: Path, place: Path) -> None:
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    os.replace(fresh, place)
    shutil.rmtree(old, ignore_errors=True)


def _trouble(executed: Path, said: str) -> str:
    """Which cell failed and why; else the last that papermill said, such as of a kernel that died."""
    cells = json.loads(executed.read_text())["cells"] if executed.is_file() else []
    for cell in cells:
        for output in cell.get("outputs", ()):
            if output["output_type"] == "error":
                return f"{output['ename']}: {output['evalue']} (cell {cell.get('id', '?')}); see {executed}"
    lines = [line for line in said.splitlines() if line.strip()]
    return f"{lines[-1].strip() if lines else 'it ended without a word'}; see {executed}"
