"""A run is a folder; this file makes, finds and reads them.

``config.yaml`` (complete), ``status.json`` (state, step, process), ``metrics.jsonl``, ``history.jsonl`` (what was done
to it), ``log.txt``, ``checkpoints/``, ``samples/``, ``results.jsonl`` (scores with how they were measured) and
``provenance.json``. Everything is written atomically or appended line by line, so a run can be read while it trains.
"""

import json
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from workbench.config import Config, fingerprint, from_dict, load_config, presets, to_yaml
from workbench.files import append_jsonl, hold_lock, read_json, read_jsonl, write_atomically, write_json
from workbench.runs import state as states
from workbench.runs.checkpoints import Checkpoint, checkpoints, remove_leftovers

_IDENTITY = ("fingerprint", "created")  # keys that provenance.json cannot do without
_TRAINER_PATIENCE = 2.0  # seconds: who looks at a lock holds it for microseconds
_MAKER_PATIENCE = 60.0  # seconds: a run is made in a fraction of one, unless git is slow


@dataclass(frozen=True)
class Run:
    """A run folder, read when asked."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def config(self) -> Config:
        """The complete configuration; ValueError naming ``config.yaml`` if it is missing or unreadable."""
        file = self.folder / "config.yaml"
        try:
            tree = yaml.safe_load(file.read_bytes())
            if not isinstance(tree, dict):
                raise ValueError(f"it holds no mapping but {type(tree).__name__}")
            return from_dict(tree)
        except FileNotFoundError as error:
            raise ValueError(f"{file} does not exist") from error
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{file} cannot be used: {' '.join(str(error).split())}") from error

    @property
    def fingerprint(self) -> str:
        return self.provenance["fingerprint"]

    @property
    def provenance(self) -> dict[str, Any]:
        """Fingerprint, date, versions, machine, latents; ValueError naming the file if it is missing or damaged."""
        return _record(self.folder / "provenance.json", _IDENTITY)

    @property
    def status(self) -> dict[str, Any]:
        """State, step and process; a run whose process is gone without a word is "lost".

        Raises ValueError naming ``status.json`` if it is missing or damaged.
        """
        return states.read_status(self.folder)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Logged training records by step; a last line cut short by a crash is left out."""
        return read_jsonl(self.folder / "metrics.jsonl")

    @property
    def results(self) -> list[dict[str, Any]]:
        """Scores, each with how it was measured."""
        return read_jsonl(self.folder / "results.jsonl")

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return checkpoints(self.folder / "checkpoints")

    def checkpoint(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of ``step``, or the newest; ValueError that lists the steps there are."""
        available = self.checkpoints
        chosen = [c for c in available if step is None or c.step == step]
        if not chosen:
            steps = ", ".join(str(c.step) for c in available) or "none"
            of = "" if step is None else f" of step {step}"
            bare = not available and (self.folder / "metrics.jsonl").is_file()
            hint = f"; to train it again, `workbench trash {self.name} --force` first" if bare else ""
            raise ValueError(f"run {self.name} has no checkpoint{of}; it has: {steps}{hint}")
        return chosen[-1]

    def write_status(self, state: str, step: int, **more: Any) -> None:
        """Replace ``status.json``."""
        states.write_status(self.folder, state, step, **more)

    def append(self, file: str, record: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl`` or ``results.jsonl``, after dropping one that a crash cut short."""
        append_jsonl(self.folder / file, record)

    def rewind(self, step: int) -> None:
        """Drop the metrics that a resumed run will log again: those after ``step``."""
        file = self.folder / "metrics.jsonl"
        content = file.read_bytes() if file.is_file() else b""
        end = content.rfind(b"\n") + 1
        while end:
            start = content.rfind(b"\n", 0, end - 1) + 1
            if json.loads(content[start:end])["step"] <= step:
                break
            end = start
        if end < len(content) or not file.is_file():
            write_atomically(file, content[:end])

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; ValueError if another one trains it. The kernel frees it at any death.

        What a killed trainer left half-written or half-deleted is removed.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(hold_lock(self.folder / states.TRAINER_LOCK, _TRAINER_PATIENCE))
            except ValueError as error:
                raise ValueError(f"run {self.folder} is being trained by another process") from error
            remove_leftovers(self.folder / "checkpoints")
            yield


def runs_root() -> Path:
    """Where runs live: ``$WORKBENCH_RUNS``, or ``runs`` in the current folder."""
    return Path(os.environ.get("WORKBENCH_RUNS", "runs"))


def home() -> Path:
    """Where the runs of a notebook live: ``$WORKBENCH_RUNS``, else ``runs`` here or one folder higher, else here.

    A notebook works in its own folder; the command line, whose runs it shows, most often one higher.
    """
    here, above = runs_root(), Path("..") / runs_root()
    return above if "WORKBENCH_RUNS" not in os.environ and above.is_dir() and not here.is_dir() else here


def prepare_run(config: Config, root: Path) -> Run:
    """The folder of the run with this configuration's fingerprint: the one that exists, or a new one.

    Processes that ask at the same time get the same folder. Raises ValueError for a teacher that does not exist, and
    if the new folder's place is taken by a damaged or another run.
    """
    mark = run_fingerprint(config, root)
    root.mkdir(parents=True, exist_ok=True)
    with hold_lock(root / ".lock", _MAKER_PATIENCE):
        existing = [run for run in find_runs(root) if run.fingerprint == mark]
        if existing:
            return existing[0]
        run = Run(root / f"{config.name.replace('/', '-')}-{mark[:8]}")
        if (run.folder / "provenance.json").exists():
            raise ValueError(f"{run.folder} holds the run of fingerprint {run.fingerprint}; this one's is {mark}")
        run.folder.mkdir(exist_ok=True)
        write_atomically(run.folder / "config.yaml", to_yaml(config).encode())
        run.write_status("created", 0)
        # Last, because a folder counts as a run once it has this file.
        write_json(run.folder / "provenance.json", {"fingerprint": mark, "created": time.time(), **machine()})
        return run


def run_fingerprint(config: Config, root: Path) -> str:
    """The fingerprint of the run that ``config`` describes, its teacher's included."""
    reference = config.objective.options.get("teacher")
    if reference is None:
        return fingerprint(config)
    teacher = find_teacher(config, root)
    step = config.objective.options.get("teacher_step")
    step = teacher.config.training.steps if step is None else step
    return fingerprint(config, f"{teacher.fingerprint}@{step}")


def find_teacher(config: Config, root: Path) -> Run:
    """The run that ``objective.teacher`` names: a run, or the run of a preset; ValueError if it was never trained."""
    reference = config.objective.options["teacher"]
    if reference in presets():
        # "released" or "paper" is said of the student's experiment, its teacher included.
        changes = [f"recipe={config.recipe}"] if config.recipe else []
        mark = run_fingerprint(load_config(reference, changes), root)
        trained = [run for run in find_runs(root) if run.fingerprint == mark]
        if not trained:
            raise ValueError(
                f"the teacher {reference!r} has not been trained in {root}: run `workbench train {reference}` first, "
                f"or set objective.teacher to a run folder"
            )
        return trained[0]
    return open_run(reference, root)


def find_runs(root: Path | None = None) -> list[Run]:
    """Every run folder under ``root``, oldest first; one whose ``provenance.json`` is damaged is warned about."""
    found = []
    for path in (root or runs_root()).glob("*/provenance.json"):
        try:
            found.append((Run(path.parent).provenance["created"], path.parent))
        except ValueError as error:
            warnings.warn(f"run {path.parent.name} is passed over: {error}", stacklevel=2)
    return [Run(folder) for _, folder in sorted(found)]


def open_run(reference: str | Path, root: Path | None = None) -> Run:
    """The run at a path, of a folder name, or whose name or fingerprint starts with ``reference``.

    Raises ValueError if there is none or more than one, with the names there are, and if its ``provenance.json`` is
    damaged.
    """
    root = root or runs_root()
    places = (Path(reference), root / str(reference))
    for folder in places:
        if (folder / "provenance.json").is_file():
            _record(folder / "provenance.json", _IDENTITY)
            return Run(folder)
    runs = find_runs(root)
    found = [r for r in runs if r.name.startswith(str(reference)) or r.fingerprint.startswith(str(reference))]
    if len(found) == 1:
        return found[0]
    names = ", ".join(run.name for run in (found or runs)) or "no runs"
    problem = "is ambiguous" if found else "is not a run folder or the name of a run"
    if not found and any(folder.is_dir() for folder in places):
        problem = "is a folder but no run, because it has no provenance.json"
    raise ValueError(f"{str(reference)!r} {problem}; {root} holds: {names}")


def _record(file: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    record = read_json(file)
    missing = [key for key in keys if key not in record]
    if missing:
        raise ValueError(f"{file} is damaged: it lacks {', '.join(missing)}")
    return record


def machine() -> dict[str, Any]:
    """What a number was computed with: package versions, commit, processor, operating system."""
    packages = ("torch", "accelerate", "diffusers", "numpy", "scikit-learn")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "commit": _commit(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except OSError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
