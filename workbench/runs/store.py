"""A run is a folder; this file makes, finds and reads them.

``config.yaml`` (complete), ``status.json`` (state, step, process), ``metrics.jsonl``, ``checkpoints/``,
``samples/``, ``results.jsonl`` (scores with how they were measured) and ``provenance.json``. Everything is written
atomically or appended line by line, so a run can be read while it trains.
"""

import fcntl
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from workbench.config import Config, fingerprint, from_dict, load_config, presets, to_yaml
from workbench.files import write_atomically
from workbench.runs.checkpoints import Checkpoint, checkpoints

STATES = ("created", "running", "finished", "stopped", "failed", "lost")


@dataclass(frozen=True)
class Run:
    """A run folder, read when asked."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def config(self) -> Config:
        """The complete configuration; ValueError if ``config.yaml`` is missing or unreadable."""
        return from_dict(yaml.safe_load((self.folder / "config.yaml").read_text()))

    @property
    def fingerprint(self) -> str:
        return self.provenance["fingerprint"]

    @property
    def provenance(self) -> dict[str, Any]:
        return json.loads((self.folder / "provenance.json").read_text())

    @property
    def status(self) -> dict[str, Any]:
        """State, step and process; a run whose process is gone without a word is "lost"."""
        status = json.loads((self.folder / "status.json").read_text())
        if status["state"] == "running" and status["host"] == platform.node() and not _locked(self.folder):
            status["state"] = "lost"
        return status

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
            raise ValueError(f"run {self.name} has no checkpoint{f' of step {step}' if step else ''}; it has: {steps}")
        return chosen[-1]

    def write_status(self, state: str, step: int, **more: Any) -> None:
        """Replace ``status.json``."""
        assert state in STATES, state
        record = {
            "state": state,
            "step": step,
            "pid": os.getpid(),
            "host": platform.node(),
            "updated": time.time(),
        }
        write_atomically(self.folder / "status.json", json.dumps({**record, **more}).encode())

    def append(self, file: str, record: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl`` or ``results.jsonl``, after dropping one that a crash cut short."""
        _drop_cut_line(self.folder / file)
        with (self.folder / file).open("a") as handle:
            handle.write(json.dumps(record) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the metrics that a resumed run will log again: those after ``step``."""
        kept = [record for record in self.metrics if record["step"] <= step]
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomically(self.folder / "metrics.jsonl", lines.encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; ValueError if another one trains it. The kernel frees it at any death."""
        with (self.folder / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(f"run {self.folder} is being trained by another process") from error
            yield


def runs_root() -> Path:
    """Where runs live: ``$WORKBENCH_RUNS``, or ``runs`` in the current folder."""
    return Path(os.environ.get("WORKBENCH_RUNS", "runs"))


def prepare_run(config: Config, root: Path) -> Run:
    """The folder of the run with this configuration's fingerprint: the one that exists, or a new one.

    Raises ValueError for a teacher that does not exist.
    """
    mark = run_fingerprint(config, root)
    existing = [run for run in find_runs(root) if run.fingerprint == mark]
    if existing:
        return existing[0]
    run = Run(root / f"{config.name.replace('/', '-')}-{mark[:8]}")
    run.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(run.folder / "config.yaml", to_yaml(config).encode())
    run.write_status("created", 0)
    # Last, because a folder counts as a run once it has this file.
    provenance = {"fingerprint": mark, "created": time.time(), **machine()}
    write_atomically(run.folder / "provenance.json", json.dumps(provenance, indent=1).encode())
    return run


def run_fingerprint(config: Config, root: Path) -> str:
    """The fingerprint of the run that ``config`` describes, its teacher's included."""
    reference = config.objective.options.get("teacher")
    if reference is None:
        return fingerprint(config)
    teacher = find_teacher(config, root)
    step = config.objective.options["teacher_step"] or teacher.config.training.steps
    return fingerprint(config, f"{teacher.fingerprint}@{step}")


def find_teacher(config: Config, root: Path) -> Run:
    """The run that ``objective.teacher`` names: a run, or the run of a preset; ValueError if it was never trained."""
    reference = config.objective.options["teacher"]
    if reference in presets():
        mark = run_fingerprint(load_config(reference), root)
        trained = [run for run in find_runs(root) if run.fingerprint == mark]
        if not trained:
            raise ValueError(
                f"the teacher {reference!r} has not been trained in {root}: run `workbench train {reference}` first, "
                f"or set objective.teacher to a run folder"
            )
        return trained[0]
    return open_run(reference, root)


def find_runs(root: Path | None = None) -> list[Run]:
    """Every run folder under ``root``, oldest first."""
    folders = (root or runs_root()).glob("*/provenance.json")
    return sorted((Run(path.parent) for path in folders), key=lambda run: run.provenance["created"])


def open_run(reference: str | Path, root: Path | None = None) -> Run:
    """The run at a path, of a folder name, or whose name or fingerprint starts with ``reference``.

    Raises ValueError if there is none or more than one, with the names there are.
    """
    root = root or runs_root()
    for folder in (Path(reference), root / str(reference)):
        if (folder / "provenance.json").is_file():
            return Run(folder)
    runs = find_runs(root)
    found = [r for r in runs if r.name.startswith(str(reference)) or r.fingerprint.startswith(str(reference))]
    if len(found) == 1:
        return found[0]
    names = ", ".join(run.name for run in (found or runs)) or "no runs"
    problem = "is ambiguous" if found else "is not a run folder or the name of a run"
    raise ValueError(f"{str(reference)!r} {problem}; {root} holds: {names}")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a missing file is empty, a last line cut short is left out."""
    if not path.is_file():
        return []
    records = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path} is damaged at line {number}") from error
    return records


def _drop_cut_line(path: Path) -> None:
    """Truncate a file that does not end in a newline after its last one, so that the next line stands alone."""
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        if handle.read(1) != b"\n":
            handle.seek(0)
            handle.truncate(handle.read().rfind(b"\n") + 1)


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


def _locked(folder: Path) -> bool:
    try:
        with Run(folder).lock():
            return False
    except ValueError:
        return True
