"""What a checkpoint costs: its writing beside a plain write of the same bytes, and how long training stops."""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import harness
import torch
from rich.table import Table
from torch import Tensor

from workbench.cli.arguments import Repeats
from workbench.cli.terminal import Console
from workbench.config import from_dict
from workbench.config.ranges import Positive
from workbench.runs.checkpoints import PARTS, latest_resumable, save_checkpoint
from workbench.training.saving import Saver
from workbench.training.student import Shape, build_backbone

XL = 10.8  # GB of a checkpoint of SiT-XL


def state(gigabytes: float, size: str) -> dict[str, dict[str, Tensor]]:
    """Random tensors of the shapes and names of a checkpoint, the blocks of ``size`` repeated up to ``gigabytes``."""
    with torch.device("meta"):
        config = from_dict({"backbone": {"name": "sit", "size": size, "patch": 2}})
        model = build_backbone(config, Shape(4, 32, tuple(str(k) for k in range(1000))))
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    one = 4 * sum(shape.numel() for shape in shapes.values()) * 4  # weights, EMA, two moments; bytes
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for copy in range(max(1, round(gigabytes * 1e9 / one))):
        for name, shape in shapes.items():
            parts["model"][f"{copy}.{name}"] = torch.rand(shape)
            parts["ema"][f"{copy}.{name}"] = torch.rand(shape)
            for kind in ("exp_avg", "exp_avg_sq"):
                parts["optimizer"][f"{copy}.{name}/{kind}"] = torch.rand(shape)
    return parts


def bench_saving(
    parts: dict[str, dict[str, Tensor]], folder: Path, repeats: int, say: Callable[[str], None] = lambda text: None
) -> dict[str, float]:
    """Seconds of a plain write, a checkpoint, the stop of training, a whole save and a load: medians, taken in turn.

    After the stop, the copy is made beside the next loss and gradient. The plain write puts the same bytes into one
    file for each part, one after the other, with a flush to disk; it neither hashes nor renames.
    """
    size = sum(t.numel() * t.element_size() for tensors in parts.values() for t in tensors.values())
    listed = [(part, name, tensor) for part, tensors in parts.items() for name, tensor in tensors.items()]
    saver = Saver(folder / "saved", keep=1, milestone_every=None)
    seconds: dict[str, list[float]] = {kind: [] for kind in ("plain", "checkpoint", "stop", "copy", "save", "load")}

    def timed(kind: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        seconds[kind].append(time.perf_counter() - began)

    def save(step: int) -> None:
        timed("stop", lambda: saver.save(step, size, listed, {}))
        timed("copy", saver.settle)
        saver.finish()

    for step in range(1, repeats + 1):
        say(f"round {step} of {repeats}")
        timed("plain", lambda: _plain(parts, folder))
        timed("checkpoint", lambda step=step: save_checkpoint(folder / "checkpoint", step, parts, {}))
        shutil.rmtree(folder / "checkpoint")
        timed("save", lambda step=step: save(step))
        timed("load", lambda: latest_resumable(folder / "saved"))
    saver.close()
    found = {f"{kind} seconds": statistics.median(values) for kind, values in seconds.items()}
    found |= {f"{kind} GB/s": size / 1e9 / found[f"{kind} seconds"] for kind in ("plain", "checkpoint", "save", "load")}
    share = statistics.median(p / c for p, c in zip(seconds["plain"], seconds["checkpoint"], strict=True))
    stop = found["stop seconds"] * XL / (size / 1e9)
    return {"gigabytes": size / 1e9, **found, "checkpoint / plain speed": share, "stop at XL, seconds": stop}


def _plain(parts: dict[str, dict[str, Tensor]], folder: Path) -> None:
    for part, tensors in parts.items():
        file = folder / part
        with file.open("wb", buffering=0) as handle:
            for tensor in tensors.values():
                handle.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
            os.fsync(handle.fileno())
        file.unlink()


@dataclass(frozen=True)
class Saving:
    """Time the writing of a checkpoint beside a plain write of the same bytes."""

    gigabytes: Positive = 2.1
    size: str = "b"
    repeats: Repeats = 5
    folder: Path | None = None
    """Where the files are written, on the disk to be measured; the folder for temporary files by default."""
    report: Path | None = None
    """Also write the figures, with the machine, to this JSON file."""

    def execute(self) -> None:
        harness.check_report(self.report)
        console = Console()
        with tempfile.TemporaryDirectory(dir=self.folder) as folder, harness.saying(console) as say:
            found = bench_saving(state(self.gigabytes, self.size), Path(folder), self.repeats, say)
        table = Table("", "", title=f"median of {self.repeats}")
        for name, value in found.items():
            table.add_row(name, f"{value:.3f}")
        console.print(table)
        harness.write_report(self.report, {"saving": found, "load average": harness.load_average()})


if __name__ == "__main__":
    harness.main(Saving)
