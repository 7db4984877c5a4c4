"""Images from a run: sample i is the same for every method, batch size, count and number of processes."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from workbench.config import SamplingConfig
from workbench.data.images import QUANTISATION
from workbench.data.workers import Progress, device_of, run_workers, serve
from workbench.diffusion.guidance import Guidance
from workbench.diffusion.paths import get_path
from workbench.diffusion.precision import tf32
from workbench.diffusion.randomness import generator, normal
from workbench.diffusion.sampling import NotFinite, evaluations, sample
from workbench.evaluation.archives import read_samples, write_samples
from workbench.files import hold_lock
from workbench.runs.held import HeldRun, held
from workbench.runs.models import check_null_class, load_backbone, load_run_vae
from workbench.runs.store import Run

_WORKER = "from workbench.evaluation.generate import work; work()"
_BATCH = 100
_PART = 1000  # images that a kill can cost a process; a multiple of the batch
_MOST = 10_000_000  # images
_FEW_PARTS = 16  # so many at least, where a batch each is asked for, so that processes have something to share


@dataclass(frozen=True)
class Samples:
    """Generated images and the classes that were asked for, by `labels_of`."""

    images: UInt8[Tensor, "n c x y"]
    labels: Int[Tensor, "n"]


def generate(
    run: Run, step: int, settings: SamplingConfig, progress: Progress | None = None, processes: int = 1
) -> Samples:
    """``settings.count`` images from the checkpoint of ``step``, kept in the run's ``samples`` folder.

    Process k takes every ``processes``-th part of some 1,000 images from the k-th on, on GPU k modulo their number.
    Killed at any moment it loses the parts in work; called again, with any number of processes, it goes on after those
    that are there, and makes damaged ones again. On one kind of processor with as many threads a process, the images
    are the same bit for bit in every case. ``progress(done, count)`` counts images. The checkpoint is held: training
    may go on and thin it. Raises ValueError as `check_sampling`, for a step that was not kept, for images that are not
    finite, and for a process that was killed.
    """
    check_sampling(run, settings, processes)
    with held(run, step) as kept:
        return _generate(kept, step, settings, progress, processes)


def check_sampling(run: Run, settings: SamplingConfig, processes: int = 1) -> None:
    """ValueError for what `generate` cannot do: sampler, steps, count, or guidance without a trained null class."""
    if processes < 1:
        raise ValueError(f"processes must be at least 1; got {processes}")
    if not 1 <= settings.count <= _MOST:
        raise ValueError(f"sampling.count is {settings.count}; allowed are 1 to {_MOST:,}")
    evaluations(settings.sampler, settings.steps, Guidance.of(settings), settings.last_step, settings.shift)
    if settings.guidance_scale != 1:
        check_null_class(run, "it cannot be guided: set sampling.guidance_scale to 1")


def _generate(run: Run, step: int, settings: SamplingConfig, progress: Progress | None, processes: int) -> Samples:
    file = _file(run, step, settings)
    parts, lock = file.with_suffix(""), file.with_name(f".{file.stem}.lock")
    if not file.is_file():
        parts.mkdir(parents=True, exist_ok=True)
        with hold_lock(lock, patience=float("inf")):  # two evaluations may want the same images
            if not file.is_file():
                _make_parts(run, step, settings, parts, progress, processes)
                _join(run, settings, parts, file)
            lock.unlink(missing_ok=True)  # who waits for it finds the file
    shutil.rmtree(parts, ignore_errors=True)
    found = read_samples(file)
    assert found.labels is not None, file
    return Samples(found.images, found.labels)


def described(run: Run, step: int, settings: SamplingConfig) -> dict[str, Any]:
    """How the images of `generate` come about, as each score of them carries it; numbers and words only."""
    options = asdict(settings)
    vae = run.latents["vae"]
    # A folder is named without its place, and of an imported run the name may be all that is known.
    decoder = " ".join(filter(None, [Path(run.config.vae.name).name, (vae["hash"] or "")[:12]]))
    return {
        "step": step,
        "n_generated": options.pop("count"),
        "sampler_steps": options.pop("steps"),
        "sample_seed": options.pop("seed"),
        "label_scheme": options.pop("labels"),
        **options,
        "nfe": evaluations(settings.sampler, settings.steps, Guidance.of(settings), settings.last_step, settings.shift),
        "ema": run.config.training.ema,
        "train_seed": run.config.training.seed,
        "decoder": decoder,
        "quantisation": QUANTISATION,
    }


def labels_of(settings: SamplingConfig, classes: int) -> Int[Tensor, "n"]:
    """The class of each sample: i modulo the number of classes, or drawn uniformly from (seed, i) alone."""
    if settings.labels == "balanced":
        return torch.arange(settings.count) % classes
    draws = (generator(settings.seed, "sample-label", i).integers(classes) for i in range(settings.count))
    return torch.from_numpy(np.fromiter(draws, np.int64, settings.count))


def work() -> None:
    """One process of `generate`."""
    serve(_make_share_of_order)


def _file(run: Run, step: int, settings: SamplingConfig) -> Path:
    checkpoint = run.checkpoint(step)
    weights = checkpoint.hash("ema" if settings.weights == "ema" else "model")
    decided = json.dumps({**asdict(settings), "weights_hash": weights}, sort_keys=True)
    key = hashlib.sha256(decided.encode()).hexdigest()[:12]
    return run.folder / "samples" / f"step-{step:08d}-{key}.npz"


def _parts(count: int) -> list[range]:
    """The images of each part: whole batches, so that one is the same whatever part and count it belongs to."""
    batches = -(-count // _BATCH)
    size = _BATCH * min(_PART // _BATCH, -(-batches // _FEW_PARTS))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _part_file(folder: Path, part: range) -> Path:
    return folder / f"part-{part.start:08d}.npz"


def _make_parts(
    run: Run, step: int, settings: SamplingConfig, folder: Path, progress: Progress | None, processes: int
) -> None:
    processes = min(processes, len(_parts(settings.count)))
    if processes == 1:
        _make_share(run, step, settings, folder, device_of(0), (0, 1), progress)
        return
    kept = str(run.kept) if isinstance(run, HeldRun) else None
    order = {"run": str(run.folder), "kept": kept, "step": step, "settings": asdict(settings), "folder": str(folder)}
    shares = [{**order, "share": (k, processes), "device": device_of(k)} for k in range(processes)]
    run_workers(_WORKER, "generating", shares, settings.count, progress)


def _make_share_of_order(order: dict[str, Any], progress: Progress) -> None:
    place, kept = Path(order["run"]), order["kept"]
    run = Run(place) if kept is None else HeldRun(place, Path(kept))
    settings, folder = SamplingConfig(**order["settings"]), Path(order["folder"])
    _make_share(run, order["step"], settings, folder, order["device"], tuple(order["share"]), progress)


def _make_share(
    run: Run,
    step: int,
    settings: SamplingConfig,
    folder: Path,
    device: str,
    share: tuple[int, int],
    progress: Progress | None,
) -> None:
    """Write what ``folder`` lacks of the parts of a ``share`` (k, of)."""
    labels = labels_of(settings, len(run.latents["classes"]))
    mine = _parts(settings.count)[share[0] :: share[1]]
    missing = [part for part in mine if not _is_whole(_part_file(folder, part), labels[part.start : part.stop])]
    done = sum(map(len, mine)) - sum(map(len, missing))
    report = partial(_report, progress, settings.count)
    report(done)
    draw = _drawer(run, step, settings, device) if missing else None
    for part in missing:
        batches = []
        for start in range(part.start, part.stop, _BATCH):
            rows = np.arange(start, min(start + _BATCH, part.stop))
            batches.append(draw(rows, labels[rows]))
            done += len(rows)
            report(done)
        write_samples(_part_file(folder, part), torch.cat(batches), labels[part.start : part.stop])


def _report(progress: Progress | None, count: int, done: int) -> None:
    if progress:
        progress(done, count)


def _is_whole(file: Path, labels: Int[Tensor, "b"]) -> bool:
    try:
        found = read_samples(file)
    except ValueError:  # missing, or damaged
        return False
    return found.labels is not None and torch.equal(found.labels, labels)


def _drawer(
    run: Run, step: int, settings: SamplingConfig, device: str
) -> Callable[[Sequence[int] | np.ndarray, Tensor], Tensor]:
    """(sample numbers, labels) -> their images, on the CPU."""
    backbone, vae = load_backbone(run, step, settings.weights).to(device), load_run_vae(run, device)
    shape = (backbone.channels, backbone.height, backbone.height)

    def latents(rows: np.ndarray, labels: Int[Tensor, "b"]) -> Float[Tensor, "b c h w"]:
        return sample(
            backbone,
            normal(settings.seed, "sample", rows, shape).to(device),
            labels.to(device),
            null_label=None if settings.guidance_scale == 1 else backbone.null_label,
            sampler=settings.sampler,
            steps=settings.steps,
            guidance=Guidance.of(settings),
            path=get_path(run.config.diffusion.path),
            last_step=settings.last_step,
            shift=settings.shift,
            step_noise=lambda i: normal(settings.seed, f"sample-step-{i}", rows, shape).to(device),
        )

    @tf32(run.config.training.tf32)
    def draw(rows: np.ndarray, labels: Int[Tensor, "b"]) -> UInt8[Tensor, "b c x y"]:
        which, cause = f"of run {run.name} at step {step}", f"did the run diverge before step {step}?"
        try:
            z = latents(rows, labels)
        except NotFinite as error:
            after = f"step {error.step} of {settings.steps} of the sampler"
            raise ValueError(f"sample {rows[error.row]} {which} is not finite after {after}; {cause}") from error
        try:
            return vae.decode(z).cpu()
        except ValueError as error:
            raise ValueError(f"samples {rows[0]} to {rows[-1]} {which}, decoded: {error}; {cause}") from error

    return draw


def _join(run: Run, settings: SamplingConfig, folder: Path, file: Path) -> None:
    labels = labels_of(settings, len(run.latents["classes"]))
    images = None
    for part in _parts(settings.count):
        found = read_samples(_part_file(folder, part)).images
        images = torch.empty((settings.count, *found.shape[1:]), dtype=torch.uint8) if images is None else images
        images[part.start : part.stop] = found
    write_samples(file, images, labels)
