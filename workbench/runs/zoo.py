"""The zoo: three trained runs that ship with the package, so that features can be seen before anything is trained.

They are trained by the presets ``zoo/teacher``, ``zoo/plain`` and ``zoo/guided``, and shipped as EMA weights in
float16 at five steps each, with configuration, log, scores and hashes: what `pack` writes and `zoo` opens.
"""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from workbench.config import load_config, refuse_unknown
from workbench.files import hold_lock, write_json
from workbench.runs.checkpoints import save_checkpoint
from workbench.runs.store import Run, find_runs, home, run_fingerprint

ANIMALS = ("teacher", "plain", "guided")
_SHIPPED = Path(__file__).parent.parent / "data" / "assets" / "zoo"
_FILES = ("config.yaml", "metrics.jsonl", "results.jsonl")
_PATIENCE = 60.0  # seconds that another process may take to copy a run


def zoo(name: str = "guided", root: Path | None = None) -> Run:
    """A shipped run: "teacher", "plain" or "guided". It lies under ``root`` (`home`) as any other, from the first
    call on, and the teacher beside the guided one; training the preset of the same name finds it finished.

    Five steps, EMA weights in float16 only, so it can be looked into, sampled, scored and teach, not resumed. Raises
    ValueError for another name, and if a run of the same fingerprint was begun here and has not finished.
    """
    refuse_unknown("run of the zoo", name, ANIMALS)
    root = home() if root is None else Path(root)
    root.mkdir(parents=True, exist_ok=True)
    if name == "guided":
        zoo("teacher", root)
    with hold_lock(root / ".zoo-lock", _PATIENCE):
        mark = Run(_SHIPPED / name).fingerprint
        there = next((run for run in find_runs(root) if run.fingerprint == mark), None)
        if there is None:
            return _place(Run(_SHIPPED / name), root)
    if there.status["state"] != "finished":
        status = there.status
        raise ValueError(
            f"{there.folder} has the fingerprint of the zoo's run and is {status['state']} at step {status['step']:,}: "
            f"finish it with `workbench train zoo/{name}`, or put it away with `workbench trash {there.name}`"
        )
    return there


def pack(root: Path | None = None, folder: Path = _SHIPPED) -> list[Path]:
    """Write the shipped form of the three finished runs under ``root``, replacing ``folder``; returns their folders.

    A run that was opened from the zoo is packed as it is, so scores of the shipped weights can be added. Raises
    ValueError for a run that has not finished.
    """
    root = home() if root is None else Path(root)
    with TemporaryDirectory(dir=folder.parent, prefix=".zoo-") as temporary:
        for name in ANIMALS:
            _pack(_trained(name, root), Path(temporary) / name)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(temporary, folder)
    return [folder / name for name in ANIMALS]


def _trained(name: str, root: Path) -> Run:
    mark = run_fingerprint(load_config(f"zoo/{name}"), root)
    found = next((run for run in find_runs(root) if run.fingerprint == mark), None)
    if found is None or found.status["state"] != "finished":
        state = "is not there" if found is None else f"is {found.status['state']}"
        raise ValueError(f"the run of zoo/{name} {state} in {root}: `workbench train zoo/{name}`")
    return found


def _pack(run: Run, folder: Path) -> None:
    folder.mkdir()
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


def _place(shipped: Run, root: Path) -> Run:
    """A copy under ``root``: complete or absent."""
    with TemporaryDirectory(dir=root, prefix=".zoo-") as temporary:
        run = Run(Path(temporary) / f"{shipped.config.name}-{shipped.fingerprint[:8]}")
        shutil.copytree(shipped.folder, run.folder)
        last = shipped.metrics[-1]
        run.write_status("finished", last["step"], steps=last["step"], seconds=last["seconds"])
        final = root / run.name
        os.replace(run.folder, final)
    return Run(final)
