"""Create, find and read run folders.

A run folder holds ``config.yaml`` (complete), ``status.json`` (state, step, process), ``metrics.jsonl``,
``history.jsonl`` (events), ``log.txt``, ``checkpoints/``, ``samples/``, ``results.jsonl`` (scores and how they were
measured) and ``provenance.json``. Files are written atomically or appended line by line, so a run can be read while it
trains.
"""

import difflib
import os
import platform
import shlex
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from workbench.config import Config, fingerprint, from_dict, load_config, presets, teacher_overrides, to_yaml
from workbench.config.paths import with_real_paths
from workbench.config.reading import MAX_BYTES, parse_yaml
from workbench.files import append_jsonl, hold_lock, open_regular, read_file, write_atomically, write_json
from workbench.runs import state as states
from workbench.runs.checkpoints import Checkpoint, checkpoints, newest, remove_leftovers
from workbench.runs.records import parse_metrics, read_metrics, read_provenance, read_results

_BEGINNING, _DIGITS = 3, 6  # shortest prefixes of a name and of a fingerprint that identify a run
_NAMED = 8  # runs that a message lists
_NO_RUNS = ("sweeps", "lost+found")  # folders in a runs folder that are never runs, even if not readable
_GIT_PATIENCE = 10.0  # seconds: a checkout may be on a slow network disk
_TRAINER_PATIENCE = 2.0  # seconds: `is_locked` holds a lock for microseconds
_MAKER_PATIENCE = 60.0  # seconds: creating a run takes a fraction of one, unless git is slow


@dataclass(frozen=True)
class Run:
    """A run folder; its files are read on access."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def config(self) -> Config:
        """The complete configuration; ValueError naming ``config.yaml`` if it is missing or unreadable."""
        file = self.folder / "config.yaml"
        raw = read_file(file, MAX_BYTES)
        try:
            tree = parse_yaml(raw, "it").value
            if not isinstance(tree, dict):
                raise ValueError(f"it must hold a mapping; it holds {type(tree).__name__}")
            return from_dict(tree)
        except ValueError as error:
            raise ValueError(f"{file} cannot be used: {' '.join(str(error).split())}") from error

    @property
    def fingerprint(self) -> str:
        return self.provenance["fingerprint"]

    @property
    def provenance(self) -> dict[str, Any]:
        """Fingerprint, date, versions, machine, latents; ValueError naming the file if it is missing or damaged."""
        return read_provenance(self.folder)

    @property
    def latents(self) -> dict[str, Any]:
        """Shape, classes and VAE of the training latents; ValueError for a run that has not started training."""
        latents = self.provenance.get("latents")
        if latents is None:
            raise ValueError(
                f"run {self.name} has no latents in its provenance.json: it has not started training, or the file was "
                f"changed"
            )
        return latents

    @property
    def status(self) -> dict[str, Any]:
        """State, step and process; the state is "lost" if the process died unexpectedly.

        Raises ValueError naming ``status.json`` if it is missing or damaged.
        """
        return states.read_status(self.folder)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Logged training records by step, without a last line that a crash cut short. ValueError if damaged."""
        return read_metrics(self.folder)

    @property
    def results(self) -> list[dict[str, Any]]:
        """Scores, each with how it was measured. ValueError naming the line if the file is damaged."""
        return read_results(self.folder)

    @property
    def checkpoint_folder(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return checkpoints(self.checkpoint_folder)

    def checkpoint(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of ``step``, or the newest; ValueError, listing the available steps, if there is none.

        Warns with `FellBack` if a newer checkpoint is damaged or the run finished at a later step.
        """
        folder = self.checkpoint_folder
        available = newest(folder, self._finished_at()) if step is None else checkpoints(folder)
        chosen = [c for c in available if step is None or c.step == step]
        if not chosen:
            steps = ", ".join(str(c.step) for c in available) or "none"
            of = "" if step is None else f" of step {step}"
            bare = not available and (self.folder / "metrics.jsonl").is_file()
            hint = f"; to train it again, `workbench trash {self.name} --force` first" if bare else ""
            raise ValueError(f"run {self.name} has no checkpoint{of}; it has: {steps}{hint}")
        return chosen[-1]

    def _finished_at(self) -> int | None:
        """Last step of a finished run; None if it has not finished or its status cannot be read."""
        with suppress(ValueError, OSError):
            status = self.status
            return status["step"] if status["state"] == "finished" else None
        return None

    def write_status(self, state: str, step: int, **more: Any) -> None:
        """Replace ``status.json``."""
        states.write_status(self.folder, state, step, **more)

    def append(self, file: str, record: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl`` or ``results.jsonl``, after removing one that a crash cut short."""
        append_jsonl(self.folder / file, record)

    def rewind(self, step: int) -> None:
        """Remove the metrics after ``step``, which a resumed run logs again.

        Raises ValueError naming the line, with nothing removed, if one of the lines to check is damaged.
        """
        file = self.folder / "metrics.jsonl"
        content = b""
        if os.path.lexists(file):
            try:
                with open_regular(file) as opened:
                    content = opened.read()
            except OSError as error:
                raise ValueError(f"{file} cannot be read: {error.strerror}") from error
        end = content.rfind(b"\n") + 1
        number = content.count(b"\n")
        while end:
            start = content.rfind(b"\n", 0, end - 1) + 1
            if parse_metrics(content[start:end], file, number)["step"] <= step:
                break
            end, number = start, number - 1
        if end < len(content) or not file.is_file():
            write_atomically(file, content[:end])

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run for this process; ValueError if another process trains it.

        The kernel releases the lock however the process dies. Removes half-written checkpoints of killed processes.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(hold_lock(self.folder / states.TRAINER_LOCK, _TRAINER_PATIENCE))
            except ValueError as error:
                raise ValueError(f"run {self.folder} is being trained by another process") from error
            remove_leftovers(self.folder / "checkpoints")
            yield


def runs_root() -> Path:
    """The runs folder: ``$WORKBENCH_RUNS``, or ``runs`` in the current folder."""
    return Path(os.environ.get("WORKBENCH_RUNS", "runs"))


def home() -> Path:
    """The runs folder of a notebook: ``$WORKBENCH_RUNS``, else an existing ``runs`` here or in the parent folder.

    A notebook runs in its own folder, but shows runs of the command line, which usually runs in the parent folder.
    """
    here, above = runs_root(), Path("..") / runs_root()
    return above if "WORKBENCH_RUNS" not in os.environ and above.is_dir() and not here.is_dir() else here


def prepare_run(config: Config, root: Path) -> Run:
    """Find the run with this configuration's fingerprint, or create it.

    Concurrent calls return the same folder. Raises ValueError for a teacher that does not exist, and if the new folder
    already exists and holds another or a damaged run.
    """
    mark = run_fingerprint(config, root)
    existing = [run for run in find_runs(root) if run.fingerprint == mark]
    if existing:  # checked before anything is written, so that it works in a read-only folder
        return existing[0]
    root.mkdir(parents=True, exist_ok=True)
    with hold_lock(root / ".lock", _MAKER_PATIENCE):
        existing = [run for run in find_runs(root) if run.fingerprint == mark]
        if existing:
            return existing[0]
        run = Run(root / f"{config.name.replace('/', '-')}-{mark[:8]}")
        if (run.folder / "provenance.json").exists():
            raise ValueError(f"{run.folder} holds a run with fingerprint {run.fingerprint}, not {mark}")
        run.folder.mkdir(exist_ok=True)
        write_atomically(run.folder / "config.yaml", to_yaml(with_real_paths(config)).encode())
        run.write_status("created", 0)
        # Last, because a folder counts as a run once it has this file.
        write_json(run.folder / "provenance.json", {"fingerprint": mark, "created": time.time(), **machine()})
        return run


def run_fingerprint(config: Config, root: Path) -> str:
    """Fingerprint of the run that ``config`` describes, including its teacher's."""
    reference = config.objective.options.get("teacher")
    if reference is None:
        return fingerprint(config)
    teacher = find_teacher(config, root)
    step = config.objective.options.get("teacher_step")
    step = teacher.config.training.steps if step is None else step
    return fingerprint(config, f"{teacher.fingerprint}@{step}")


def find_teacher(config: Config, root: Path) -> Run:
    """The run that ``objective.teacher`` names: a run, or the run of a preset with the student's `teacher_overrides`.

    Raises ValueError, with the command to train it, if it has never been trained.
    """
    reference = config.objective.options["teacher"]
    if reference in presets():
        changes = teacher_overrides(config)
        mark = run_fingerprint(load_config(reference, changes, named=False), root)
        trained = [run for run in find_runs(root) if run.fingerprint == mark]
        if not trained:
            command = shlex.join(["workbench", "train", reference, *changes])
            raise ValueError(
                f"the teacher {reference!r} has not been trained in {root}: run `{command}` first, "
                f"or set objective.teacher to a run folder"
            )
        return trained[0]
    return open_run(reference, root)


def find_runs(root: Path | None = None) -> list[Run]:
    """List every run in a folder, oldest first.

    Args:
        root: Folder of the runs; ``$WORKBENCH_RUNS`` or ``./runs`` by default.

    Returns:
        The runs. One whose ``provenance.json`` is damaged is left out with a warning.

    Raises:
        ValueError: If the folder exists but cannot be read.

    Examples:
        >>> guided = wb.zoo("guided")
        >>> guided.name in [run.name for run in wb.find_runs()]
        True
    """
    found = []
    for folder in run_folders(root or runs_root()):
        try:
            found.append((read_provenance(folder)["created"], folder))
        except ValueError as error:
            if folder.exists():  # else it was moved meanwhile
                warnings.warn(f"run {folder.name} is skipped: {error}", stacklevel=2)
    return [Run(folder) for _, folder in sorted(found)]


def run_folders(root: Path) -> list[Path]:
    """Run folders under ``root``, sorted by name, damaged ones included; empty if ``root`` does not exist.

    Raises ValueError if ``root`` cannot be read.
    """
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ValueError(f"the runs folder {root} cannot be read: {error.strerror}") from error
    return [root / name for name in names if is_run_folder(root / name)]


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is a run, maybe damaged: it has ``provenance.json``, ``metrics.jsonl`` or ``checkpoints``."""
    try:
        os.lstat(folder / "provenance.json")
        return True
    except FileNotFoundError:
        return any(os.path.lexists(folder / name) for name in ("metrics.jsonl", "checkpoints"))
    except PermissionError:
        return not folder.name.startswith(".") and folder.name not in _NO_RUNS
    except (OSError, ValueError):  # not a folder, or not a valid name
        return False


def open_run(reference: str | Path, root: Path | None = None, damaged: bool = False) -> Run:
    """Open a run by path, name or fingerprint.

    Args:
        reference: Path of its folder, its name, a prefix of its name (three characters or more, unless it is the full
            ``name`` of its configuration) or a prefix of its fingerprint (six digits or more).
        root: Folder of the runs; ``$WORKBENCH_RUNS`` or ``./runs`` by default.
        damaged: Also open a run whose ``provenance.json`` is damaged, by its path or full name.

    Returns:
        A ``Run``. On access it reads ``config``, ``status``, ``provenance``, ``metrics``, ``results`` and
        ``checkpoints``; ``checkpoint(step)`` is one of them.

    Raises:
        ValueError: If no run or more than one matches, with some names of runs, and if the run is damaged.

    Examples:
        >>> guided = wb.zoo("guided")
        >>> run = wb.open_run("zoo-guided")
        >>> run.status["state"], run.config.backbone.name
        ('finished', 'sit')
    """
    root, text = root or runs_root(), str(reference)
    if not text.strip():
        raise ValueError(
            "the name of the run is empty, perhaps from an unset variable; `workbench runs` lists the runs"
        )
    places = _places(text, root)
    for folder in places:
        if is_run_folder(folder):
            run = Run(folder if folder.name not in ("", "..") else folder.resolve())
            if damaged:
                return run
            if os.path.lexists(folder / "provenance.json"):
                read_provenance(folder)
                return run
    runs = find_runs(root)
    found = [run for run in runs if _is_called(run, text, _BEGINNING, _DIGITS)]
    if len(found) == 1:
        return found[0]
    problem = "is ambiguous" if found else "is not a run folder or the name of a run"
    if not found and any(map(os.path.isdir, places)):
        problem = "is a folder but not a run, because it has no provenance.json"
    elif not found and any(_is_called(run, text, 1, 1) for run in runs):
        problem = (
            f"is not a run folder or the name of a run, and too short for a prefix: give {_BEGINNING} characters of a "
            f"name or {_DIGITS} digits of a fingerprint"
        )
    raise ValueError(f"{text!r} {problem}; {root} holds: {_some([run.name for run in found or runs], text)}")


def _places(text: str, root: Path) -> list[Path]:
    """Candidate paths of a reference: relative to here and, unless it has no name (such as ".."), to ``root``."""
    if "\0" in text:
        return []
    named = any(part not in (".", "..", "/") for part in Path(text).parts)
    return [Path(text), root / text] if named else [Path(text)]


def _is_called(run: Run, text: str, beginning: int, digits: int) -> bool:
    """Whether a text names a run: the name in its configuration, or a long enough prefix of name or fingerprint."""
    mark = run.fingerprint
    if run.name == f"{text.replace('/', '-')}-{mark[:8]}":
        return True
    of_name = len(text) >= beginning and run.name.startswith(text)
    return of_name or (len(text) >= digits and mark.startswith(text))


def _some(names: list[str], text: str) -> str:
    """A few names as text, the closest matches first."""
    near = difflib.get_close_matches(text[:200], names, n=_NAMED)
    listed = [*near, *(name for name in reversed(names) if name not in near)][:_NAMED]
    more = f" and {len(names) - len(listed)} more" if len(names) > len(listed) else ""
    return ", ".join(listed) + more or "no runs"


def machine() -> dict[str, Any]:
    """Software and hardware of this process: package versions, commit, processor, operating system."""
    from importlib.metadata import version  # it takes a tenth of the time that the command line needs to start

    packages = ("torch", "accelerate", "diffusers", "numpy", "scikit-learn")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "commit": _commit(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _commit() -> str | None:
    """Commit of this package's checkout; None without git, or if git fails or takes too long."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        # A process group of its own, so that git's subprocesses, which hold the output open, are killed with it.
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        ) as git:
            try:
                output = git.communicate(timeout=_GIT_PATIENCE)[0].decode(errors="replace").strip()
            finally:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(git.pid, signal.SIGKILL)
        return output or None if git.returncode == 0 else None
    except (OSError, subprocess.SubprocessError):
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
