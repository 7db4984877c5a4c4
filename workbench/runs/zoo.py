"""The zoo: three trained runs that ship with the package, so that features can be seen before anything is trained.

They are trained by the presets ``zoo/teacher``, ``zoo/plain`` and ``zoo/guided``, and shipped as EMA weights in
float16 at five steps each, with configuration, log, scores and hashes: archives that `pack` writes and `zoo` opens.
"""

import json
import shutil
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from workbench.config import load_config, refuse_unknown
from workbench.files import hold_lock, replacing, write_json
from workbench.runs.archive import place_run, write_archive
from workbench.runs.checkpoints import save_checkpoint
from workbench.runs.store import Run, find_runs, home, run_fingerprint

ANIMALS = ("teacher", "plain", "guided")
_SHIPPED = Path(__file__).parent.parent / "data" / "assets" / "zoo"
_FILES = ("config.yaml", "metrics.jsonl", "results.jsonl")
_PATIENCE = 60.0  # seconds that another process may take to unpack a run


def zoo(name: str = "guided", root: Path | None = None) -> Run:
    """Open a run that ships with the package.

    It is placed among the other runs at the first call, the teacher beside the guided one. Five steps, EMA weights in
    float16 only, so it can be looked into, sampled, scored and be a teacher, but not resumed. Training the preset of
    the same name finds it finished.

    Args:
        name: "teacher", "plain" or "guided".
        root: Folder of the runs; by default ``$WORKBENCH_RUNS``, or ``runs`` here or one folder higher.

    Returns:
        The ``Run``.

    Raises:
        ValueError: For another name, and if a run of the same fingerprint was begun here and has not finished.

    Examples:
        >>> [checkpoint.step for checkpoint in wb.zoo("guided").checkpoints]
        [1200, 2400, 3600, 4800, 6000]
    """
    refuse_unknown("run of the zoo", name, ANIMALS)
    root = home() if root is None else Path(root)
    root.mkdir(parents=True, exist_ok=True)
    if name == "guided":
        zoo("teacher", root)
    with hold_lock(root / ".zoo-lock", _PATIENCE), zipfile.ZipFile(_SHIPPED / f"{name}.zip") as archive:
        mark = json.loads(archive.read("provenance.json"))["fingerprint"]
        there = next((run for run in find_runs(root) if run.fingerprint == mark), None)
        if there is None:
            return place_run(archive, root / f"zoo-{name}-{mark[:8]}")
    if there.status["state"] != "finished":
        status = there.status
        raise ValueError(
            f"{there.folder} has the fingerprint of the zoo's run and is {status['state']} at step {status['step']:,}: "
            f"finish it with `workbench train zoo/{name}`, or put it away with `workbench trash {there.name}`"
        )
    return there


def pack(root: Path | None = None, folder: Path = _SHIPPED) -> list[Path]:
    """Write the shipped form of the three finished runs under ``root`` into ``folder``; returns the archives.

    A run that was opened from the zoo is packed as it is, so scores of the shipped weights can be added. Raises
    ValueError, with nothing written, for a run that has not finished.
    """
    root = home() if root is None else Path(root)
    runs = {name: _trained(name, root) for name in ANIMALS}
    folder.mkdir(exist_ok=True)
    for name, run in runs.items():
        with TemporaryDirectory() as temporary, replacing(folder / f"{name}.zip") as file:
            _gather(run, Path(temporary))
            paths = [path for path in Path(temporary).rglob("*") if path.is_file()]
            write_archive(file, {str(path.relative_to(temporary)): path.read_bytes() for path in paths})
    return [folder / f"{name}.zip" for name in ANIMALS]


def _trained(name: str, root: Path) -> Run:
    mark = run_fingerprint(load_config(f"zoo/{name}"), root)
    found = next((run for run in find_runs(root) if run.fingerprint == mark), None)
    if found is None or found.status["state"] != "finished":
        state = "is not there" if found is None else f"is {found.status['state']}"
        raise ValueError(f"the run of zoo/{name} {state} in {root}: `workbench train zoo/{name}`")
    return found


def _gather(run: Run, folder: Path) -> None:
    """What is shipped of a run, as the files of a run."""
    for file in filter(lambda name: (run.folder / name).is_file(), _FILES):
        shutil.copyfile(run.folder / file, folder / file)
    every = run.config.training.milestone_every
    for checkpoint in run.checkpoints:
        if checkpoint.step % every == 0:
            halves = {key: tensor.to(torch.float16) for key, tensor in checkpoint.load("ema").items()}
            told = {key: value for key, value in checkpoint.state.items() if key not in ("step", "files")}
            # The weights as they were trained, to whoever has them.
            told.setdefault("float32", checkpoint.hash("ema"))
            save_checkpoint(folder / "checkpoints", checkpoint.step, {"ema": halves}, told)
    write_json(folder / "provenance.json", {**run.provenance, "shipped": True})
