"""The zoo: three trained runs that ship with the package, to try features without training.

They were trained with the presets ``zoo/teacher``, ``zoo/plain`` and ``zoo/guided``. Each archive has EMA weights in
float16 at five steps, with configuration, metrics, scores and hashes. `pack` writes the archives, `zoo` opens them.
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
_PATIENCE = 60.0  # seconds to wait for another process that unpacks a run


def zoo(name: str = "guided", root: Path | None = None) -> Run:
    """Open a run that ships with the package.

    The first call unpacks it into the runs folder; "guided" unpacks its teacher too. It has EMA weights in float16 at
    five steps, so it can be inspected, sampled, scored and used as a teacher, but not resumed. Training the preset of
    the same name finds this run and does nothing.

    Args:
        name: "teacher", "plain" or "guided".
        root: Folder of the runs; by default ``$WORKBENCH_RUNS``, or ``runs`` here or in the parent folder.

    Returns:
        The ``Run``.

    Raises:
        ValueError: For another name, and if an unfinished run with the same fingerprint exists.

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
        fingerprint = json.loads(archive.read("provenance.json"))["fingerprint"]
        run = next((run for run in find_runs(root) if run.fingerprint == fingerprint), None)
        if run is None:
            return place_run(archive, root / f"zoo-{name}-{fingerprint[:8]}")
    status = run.status
    if status["state"] != "finished":
        raise ValueError(
            f"{run.folder} has the fingerprint of the zoo's run and is {status['state']} at step {status['step']:,}: "
            f"finish it with `workbench train zoo/{name}`, or remove it with `workbench trash {run.name}`"
        )
    return run


def pack(root: Path | None = None, folder: Path = _SHIPPED) -> list[Path]:
    """Write the archives of the three finished runs under ``root`` into ``folder`` and return their paths.

    A run that came from the zoo is packed as it is, so scores of the shipped weights can be added. Raises ValueError,
    with nothing written, for a run that has not finished.
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
    fingerprint = run_fingerprint(load_config(f"zoo/{name}"), root)
    run = next((run for run in find_runs(root) if run.fingerprint == fingerprint), None)
    if run is None or run.status["state"] != "finished":
        state = "is missing" if run is None else f"is {run.status['state']}"
        raise ValueError(f"the run of zoo/{name} {state} in {root}: `workbench train zoo/{name}`")
    return run


def _gather(run: Run, folder: Path) -> None:
    """Write the shipped files of a run into a folder."""
    for file in filter(lambda name: (run.folder / name).is_file(), _FILES):
        shutil.copyfile(run.folder / file, folder / file)
    every = run.config.training.milestone_every or 1
    for checkpoint in run.checkpoints:
        if checkpoint.step % every == 0:
            halves = {key: tensor.to(torch.float16) for key, tensor in checkpoint.load("ema").items()}
            state = {key: value for key, value in checkpoint.state.items() if key not in ("step", "files")}
            # Hash of the original float32 weights.
            state.setdefault("float32", checkpoint.hash("ema"))
            save_checkpoint(folder / "checkpoints", checkpoint.step, {"ema": halves}, state)
    write_json(folder / "provenance.json", {**run.provenance, "shipped": True})
