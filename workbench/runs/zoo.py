"""The zoo: trained runs that ship with the package, to try features without training.

They were trained with the presets ``zoo/teacher``, ``zoo/plain`` and ``zoo/guided`` on grey garments, and with
``scenes/teacher``, ``scenes/plain`` and ``scenes/guided`` on coloured ones before photographs. Each archive has EMA
weights in float16, with configuration, metrics, scores and hashes. `pack` writes the archives, `zoo` opens them.
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

GARMENTS = ("teacher", "plain", "guided")
PRESETS = {**{name: f"zoo/{name}" for name in GARMENTS}, **{f"scenes-{name}": f"scenes/{name}" for name in GARMENTS}}
# Which checkpoints are shipped, of those that were kept; of the larger models the last.
_STEPS = {"teacher": (600, 1200, 1800, 3000), **dict.fromkeys(("plain", "guided"), (1200, 2400, 3600, 6000))}
_SHIPPED = Path(__file__).parent.parent / "data" / "assets" / "zoo"
_FILES = ("config.yaml", "metrics.jsonl", "results.jsonl")
_PATIENCE = 60.0  # seconds to wait for another process that unpacks a run


def zoo(name: str = "guided", root: Path | None = None) -> Run:
    """Open a run that ships with the package.

    The first call unpacks it into the runs folder; a guided run unpacks its teacher too. It has EMA weights in float16,
    so it can be inspected, sampled, scored and used as a teacher, but not resumed. Training its preset finds this run
    and does nothing.

    Args:
        name: "teacher", "plain" or "guided": SiT-pico on Fashion-MNIST, 64 tokens, at four steps; or
            "scenes-teacher", "scenes-plain" or "scenes-guided": SiT-nano on scenes of 64 pixels with known masks,
            64 tokens, at the last step.
        root: Folder of the runs; by default ``$WORKBENCH_RUNS``, or ``runs`` here or in the parent folder.

    Returns:
        The ``Run``.

    Raises:
        ValueError: For another name, and if an unfinished run with the same fingerprint exists.

    Examples:
        >>> [checkpoint.step for checkpoint in wb.zoo("guided").checkpoints]
        [1200, 2400, 3600, 6000]
    """
    refuse_unknown("run of the zoo", name, PRESETS)
    root = home() if root is None else Path(root)
    root.mkdir(parents=True, exist_ok=True)
    if name.endswith("guided"):
        zoo(name.replace("guided", "teacher"), root)
    with hold_lock(root / ".zoo-lock", _PATIENCE), zipfile.ZipFile(_SHIPPED / f"{name}.zip") as archive:
        fingerprint = json.loads(archive.read("provenance.json"))["fingerprint"]
        run = next((run for run in find_runs(root) if run.fingerprint == fingerprint), None)
        if run is None:
            return place_run(archive, root / f"zoo-{name}-{fingerprint[:8]}")
    status = run.status
    if status["state"] != "finished":
        raise ValueError(
            f"{run.folder} has the fingerprint of the zoo's run and is {status['state']} at step {status['step']:,}: "
            f"finish it with `workbench train {PRESETS[name]}`, or remove it with `workbench trash {run.name}`"
        )
    return run


def shipped_at(scale: str) -> list[str]:
    """Names of the runs whose presets are those of a scale of the reports, such as "scenes"."""
    return [name for name, preset in PRESETS.items() if preset.startswith(f"{scale}/")]


def pack(root: Path | None = None, folder: Path = _SHIPPED) -> list[Path]:
    """Write the archives of the finished runs under ``root`` into ``folder`` and return their paths.

    A run that came from the zoo is packed as it is, so scores of the shipped weights can be added. Raises ValueError,
    with nothing written, for a run that has not finished.
    """
    root = home() if root is None else Path(root)
    runs = {name: _trained(preset, root) for name, preset in PRESETS.items()}
    folder.mkdir(exist_ok=True)
    for name, run in runs.items():
        with TemporaryDirectory() as temporary, replacing(folder / f"{name}.zip") as file:
            _gather(run, _STEPS.get(name, (run.config.training.steps,)), Path(temporary))
            paths = [path for path in Path(temporary).rglob("*") if path.is_file()]
            write_archive(file, {str(path.relative_to(temporary)): path.read_bytes() for path in paths})
    return [folder / f"{name}.zip" for name in PRESETS]


def _trained(preset: str, root: Path) -> Run:
    fingerprint = run_fingerprint(load_config(preset), root)
    run = next((run for run in find_runs(root) if run.fingerprint == fingerprint), None)
    if run is None or run.status["state"] != "finished":
        state = "is missing" if run is None else f"is {run.status['state']}"
        raise ValueError(f"the run of {preset} {state} in {root}: `workbench train {preset}`")
    return run


def _gather(run: Run, steps: tuple[int, ...], folder: Path) -> None:
    """Write the shipped files of a run, with its checkpoints at these steps, into a folder."""
    for file in filter(lambda name: (run.folder / name).is_file(), _FILES):
        shutil.copyfile(run.folder / file, folder / file)
    for checkpoint in run.checkpoints:
        if checkpoint.step in steps:
            halves = {key: tensor.to(torch.float16) for key, tensor in checkpoint.load("ema").items()}
            state = {key: value for key, value in checkpoint.state.items() if key not in ("step", "files")}
            # Hash of the original float32 weights.
            state.setdefault("float32", checkpoint.hash("ema"))
            save_checkpoint(folder / "checkpoints", checkpoint.step, {"ema": halves}, state)
    write_json(folder / "provenance.json", {**run.provenance, "shipped": True})
