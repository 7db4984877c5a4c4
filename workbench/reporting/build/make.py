"""Make a report: papermill executes one notebook for each figure or table whose inputs have changed."""

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
from workbench.reporting.build.changes import is_unchanged, record_inputs
from workbench.reporting.build.pages import RECORD, read_record
from workbench.reporting.paper.runs import SCALES
from workbench.runs.zoo import shipped_at, zoo
from workbench.reporting.sweep.execution import KERNEL_STARTS, NOT_STARTED
from workbench.shipped import shipped


@dataclass(frozen=True)
class Made:
    """Result for one artifact, with a reason for the last two states.

    "made", "kept" because nothing changed, "incomplete" runs or weights so that there is nothing to show, or "failed".
    """

    name: str
    state: str
    seconds: float
    done: int
    total: int
    reason: str = ""


def notebook() -> Path:
    """The notebook that makes a figure or table, given its name."""
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
    """Make the artifacts of `scale`, or those in `only`, from the runs under `root`; yields each when it is done.

    Each artifact is written into `folder`. `workers` notebooks at a time share the cores; with `score` they compute
    missing scores first. If one fails, or has nothing to show, its previous version is kept and the others continue.
    Artifacts without changes are kept, unless `force`. Runs of the scale that ship with the package are unpacked into
    `root`. ValueError for an unknown scale or artifact.
    """
    refuse_unknown("scale", scale, SCALES)
    names = paper.chosen(only)
    for name in shipped_at(scale):
        zoo(name, root)
    folder.mkdir(parents=True, exist_ok=True)
    kept = [] if force else [name for name in names if is_unchanged(name, notebook(), scale, root, folder, score)]
    for done, name in enumerate(kept, start=1):
        reason = reason_not_shown(folder / paper.folder_of(name))
        yield Made(name, "incomplete" if reason else "kept", 0.0, done, len(names), reason)
    workers = workers or max(1, (os.cpu_count() or 1) // 2 + 1)
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_make, name, scale, root, folder, workers, score) for name in names if name not in kept]
        try:
            for done, future in enumerate(as_completed(futures), start=len(kept) + 1):
                name, seconds, state, reason = future.result()
                yield Made(name, state, seconds, done, len(names), reason)
        finally:
            for future in futures:
                future.cancel()


def reason_not_shown(folder: Path) -> str:
    """Why an artifact has nothing to show, with the first command of those that help; "" if it shows something."""
    record = read_record(folder)
    if record["figures"] or record["tables"]:
        return ""
    first = [f"Missing: {one['what']}: {one['command']}" for one in record["missing"][:1]]
    others = len(record["missing"]) - 1
    more = [f"{others} more {'is' if others == 1 else 'are'} listed on its page."] if others > 0 else []
    return " ".join([record["caption"], *first, *more])


def _make(name: str, scale: str, root: Path, folder: Path, workers: int, score: bool) -> tuple[str, float, str, str]:
    """Execute one notebook; returns name, seconds, state and reason.

    A previous version that shows something is not replaced by one that shows nothing, for example for lack of weights.
    """
    began, target = time.monotonic(), folder / paper.folder_of(name)
    fresh = folder / f".{target.name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    executed = fresh / f"{target.name}.ipynb"
    command = [sys.executable, "-m", "workbench.reporting.papermill", str(notebook()), str(executed), "--kernel", "python3"]
    command += ["--no-progress-bar", "-p", "name", name, "-p", "scale", scale, "-p", "folder", str(fresh.resolve())]
    command += ["-p", "evaluate", "True"] if score else []
    # Uses the package of this process even if another one is installed, and its share of the cores as threads.
    packages = [str(Path(workbench.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    own = {"PYTHONPATH": os.pathsep.join(filter(None, packages)), "WORKBENCH_RUNS": str(root.resolve())}
    environment = {"OMP_NUM_THREADS": threads, **os.environ, **own}
    for _ in range(KERNEL_STARTS):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if NOT_STARTED not in done.stderr:
            break
    reason = _failure(executed, done.stderr) if done.returncode or not (fresh / RECORD).is_file() else ""
    seconds = time.monotonic() - began
    if reason:
        return name, seconds, "failed", reason
    reason = reason_not_shown(fresh)
    if reason and _shows_something(target):
        shutil.rmtree(fresh)
        return name, seconds, "incomplete", f"{reason} The previous version is kept."
    record_inputs(name, notebook(), scale, root, fresh, score)
    _replace(target, fresh)
    return name, seconds, "incomplete" if reason else "made", reason


def _shows_something(folder: Path) -> bool:
    try:
        return not reason_not_shown(folder)
    except ValueError:  # never made, or damaged
        return False


def _replace(folder: Path, fresh: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def _failure(executed: Path, stderr: str) -> str:
    """Which cell failed and why, or else the last line of papermill's output, for example if the kernel died."""
    cells = json.loads(executed.read_text())["cells"] if executed.is_file() else []
    for cell in cells:
        for output in cell.get("outputs", ()):
            if output["output_type"] == "error":
                return f"{output['ename']}: {output['evalue']} (cell {cell.get('id', '?')}); see {executed}"
    lines = [line for line in stderr.splitlines() if line.strip()]
    return f"{lines[-1].strip() if lines else 'it ended without output'}; see {executed}"
