"""Generate images from a run; the noise of sample i does not depend on method, batch size, count or processes."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from workbench.backbones.base import TransformerBackbone
from workbench.config import SamplingConfig
from workbench.data.images import QUANTISATION
from workbench.data.ranks import Ranks
from workbench.data.vae import VAE
from workbench.data.workers import Progress, device_of, run_workers, serve
from workbench.diffusion.devices import FittingBatches, sent
from workbench.diffusion.guidance import Guidance
from workbench.diffusion.paths import get_path
from workbench.diffusion.precision import chosen_precision, reduced, tf32
from workbench.diffusion.randomness import generator, normal
from workbench.diffusion.sampling import NotFinite, evaluations, sample
from workbench.evaluation.archives import SampleFile, read_samples, write_parts, write_samples
from workbench.files import hold_lock
from workbench.runs.held import HeldRun, held
from workbench.runs.models import check_null_class, load_backbone, load_run_vae
from workbench.runs.store import Run
from workbench.runs.weak import Weak, check_weak

_WORKER = "from workbench.evaluation.generate import work; work()"
BATCH = 100  # images at a time, fewer if these do not fit the GPU's memory
_ITSELF = "the run itself"  # at another step, as the weak model
_PART = 1000  # images per file, which a killed process may lose; a multiple of the batch
_MOST = 10_000_000  # images
_FEW_PARTS = 16  # at least, if there are as many batches, so that processes can share the work


@dataclass(frozen=True)
class Samples:
    """Generated images and their classes, by `labels_of`."""

    images: UInt8[Tensor, "n c x y"]
    labels: Int[Tensor, "n"]


def generate(
    run: Run,
    step: int,
    settings: SamplingConfig,
    progress: Progress | None = None,
    processes: int = 1,
    weak: Weak | None = None,
) -> Samples:
    """Generate ``settings.count`` images from the checkpoint of ``step``; they are stored in the run's ``samples``.

    The images are divided into parts of about 1,000. Process k generates every ``processes``-th part starting with the
    k-th, on GPU k modulo the number of GPUs. An interrupted call loses only the parts it was working on; calling it
    again, with any number of processes, continues with the missing or damaged parts. The images are the same bit for
    bit in all cases, for the same kind of processor and threads per process. ``progress(done, count)`` counts images.
    The checkpoint is protected from deletion by a running training. Guidance is against the velocity of ``weak``, if
    given, instead of that with the null label. Raises ValueError as `check_sampling`, for a step without a checkpoint,
    for a weak model that does not fit, for non-finite images, and if a process was killed.
    """
    stored = generated(run, step, settings, progress, processes, weak)
    assert stored.labels is not None
    return Samples(stored.images, stored.labels)


def generated(
    run: Run,
    step: int,
    settings: SamplingConfig,
    progress: Progress | None = None,
    processes: int = 1,
    weak: Weak | None = None,
) -> SampleFile:
    """The file of the images that `generate` returns, which are read in batches: 50,000 of 256 pixels take 10 GB."""
    check_sampling(run, settings, processes, weak)
    settings = with_precision(settings)
    if weak is not None:
        check_weak(run, [step], weak)
    with held(run, step) as kept:
        return _generated(kept, step, settings, progress, processes, weak if settings.guidance_scale != 1 else None)


def generate_share(
    run: Run,
    step: int,
    settings: SamplingConfig,
    ranks: Ranks,
    progress: Progress | None = None,
    weak: Weak | None = None,
) -> None:
    """Generate this process's share of the images that `generate` then finds, and wait for the other processes.

    The processes may be on several machines that share the run's folder. Raises ValueError as `generate`.
    """
    check_sampling(run, settings, weak=weak)
    settings = ranks.of_main(with_precision(settings))
    weak = weak if settings.guidance_scale != 1 else None
    with held(run, step) as kept:
        file = _file(kept, step, settings, weak)
        if not file.is_file():
            parts = file.with_suffix("")
            parts.mkdir(parents=True, exist_ok=True)
            _make_share(kept, step, settings, parts, ranks.device, (ranks.rank, ranks.count), progress, weak)
        ranks.wait()


def with_precision(settings: SamplingConfig) -> SamplingConfig:
    """The settings with ``precision: auto`` replaced by what this machine takes."""
    return replace(settings, precision=chosen_precision(settings.precision))


def check_sampling(run: Run, settings: SamplingConfig, processes: int = 1, weak: Weak | None = None) -> None:
    """Raise ValueError for a wrong sampler, steps or count, or guidance of a run without a trained null class."""
    if processes < 1:
        raise ValueError(f"processes must be at least 1; got {processes}")
    if not 1 <= settings.count <= _MOST:
        raise ValueError(f"sampling.count is {settings.count}; allowed are 1 to {_MOST:,}")
    evaluations(settings.sampler, settings.steps, Guidance.of(settings), settings.last_step, settings.shift)
    if settings.guidance_scale != 1 and weak is None:
        check_null_class(run, "it cannot be guided: set sampling.guidance_scale to 1")


def _generated(
    run: Run, step: int, settings: SamplingConfig, progress: Progress | None, processes: int, weak: Weak | None
) -> SampleFile:
    file = _file(run, step, settings, weak)
    parts, lock = file.with_suffix(""), file.with_name(f".{file.stem}.lock")
    if not file.is_file():
        parts.mkdir(parents=True, exist_ok=True)
        with hold_lock(lock, patience=float("inf")):  # another process may generate the same images
            if not file.is_file():
                _make_parts(run, step, settings, parts, progress, processes, weak)
                _join(run, settings, parts, file)
            lock.unlink(missing_ok=True)  # a waiting process finds the finished file
    shutil.rmtree(parts, ignore_errors=True)
    return read_samples(file)


def described(run: Run, step: int, settings: SamplingConfig, weak: Weak | None = None) -> dict[str, Any]:
    """Description of how `generate` makes its images, stored with each score of them; numbers and text only.

    Without guidance a weak model changes nothing, and is not named.
    """
    options = with_precision(settings).described()
    vae = run.latents["vae"]
    # A folder by its name only. Imported runs may have no hash.
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
        **_described_weak(run, settings, weak if settings.guidance_scale != 1 else None),
    }


def _described_weak(run: Run, settings: SamplingConfig, weak: Weak | None) -> dict[str, Any]:
    if weak is None:
        return {"weak": None, "weak_step": None, "weak_hash": None}
    # Of all runs that are guided against an own step this is the same, so that their scores can be compared.
    name = _ITSELF if weak.run.folder.resolve() == run.folder.resolve() else weak.run.name
    return {"weak": name, "weak_step": weak.step, "weak_hash": _weights_hash(weak.run, weak.step, settings)}


def _weights_hash(run: Run, step: int, settings: SamplingConfig) -> str:
    return run.checkpoint(step).hash("ema" if settings.weights == "ema" else "model")


def labels_of(settings: SamplingConfig, classes: int) -> Int[Tensor, "n"]:
    """The class of each sample i: i modulo the number of classes, or drawn uniformly, depending on (seed, i) only."""
    if settings.labels == "balanced":
        return torch.arange(settings.count) % classes
    draws = (generator(settings.seed, "sample-label", i).integers(classes) for i in range(settings.count))
    return torch.from_numpy(np.fromiter(draws, np.int64, settings.count))


def work() -> None:
    """Entry point of a worker process of `generate`."""
    serve(_make_share_of_order)


def _file(run: Run, step: int, settings: SamplingConfig, weak: Weak | None) -> Path:
    hashes = {"weights_hash": _weights_hash(run, step, settings)}
    if weak is not None:
        hashes["weak_hash"] = _weights_hash(weak.run, weak.step, settings)
    decided = json.dumps({**settings.described(), **hashes}, sort_keys=True)
    key = hashlib.sha256(decided.encode()).hexdigest()[:12]
    return run.folder / "samples" / f"step-{step:08d}-{key}.npz"


def _parts(count: int) -> list[range]:
    """Index ranges of the parts; they are whole batches, so that batches do not depend on the count or the parts."""
    batches = -(-count // BATCH)
    size = BATCH * min(_PART // BATCH, -(-batches // _FEW_PARTS))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _part_file(folder: Path, part: range) -> Path:
    return folder / f"part-{part.start:08d}.npz"


def _make_parts(
    run: Run,
    step: int,
    settings: SamplingConfig,
    folder: Path,
    progress: Progress | None,
    processes: int,
    weak: Weak | None,
) -> None:
    processes = min(processes, len(_parts(settings.count)))
    if processes == 1:
        _make_share(run, step, settings, folder, device_of(0), (0, 1), progress, weak)
        return
    kept = str(run.kept) if isinstance(run, HeldRun) else None
    order: dict[str, Any] = {
        "run": str(run.folder),
        "kept": kept,
        "step": step,
        "settings": asdict(settings),
        "folder": str(folder),
    }
    order["weak"] = None if weak is None else [str(weak.run.folder), weak.step]
    shares = [{**order, "share": (k, processes), "device": device_of(k)} for k in range(processes)]
    run_workers(_WORKER, "generating", shares, settings.count, progress)


def _make_share_of_order(order: dict[str, Any], progress: Progress) -> None:
    run_folder, kept = Path(order["run"]), order["kept"]
    run = Run(run_folder) if kept is None else HeldRun(run_folder, Path(kept))
    settings, folder = SamplingConfig(**order["settings"]), Path(order["folder"])
    weak = None if order["weak"] is None else Weak(Run(Path(order["weak"][0])), order["weak"][1])
    _make_share(run, order["step"], settings, folder, order["device"], tuple(order["share"]), progress, weak)


def _make_share(
    run: Run,
    step: int,
    settings: SamplingConfig,
    folder: Path,
    device: str,
    share: tuple[int, int],
    progress: Progress | None,
    weak: Weak | None,
) -> None:
    """Generate and write the parts of a ``share`` (k, of) that are missing in ``folder``."""
    labels = labels_of(settings, len(run.latents["classes"]))
    mine = _parts(settings.count)[share[0] :: share[1]]
    missing = [part for part in mine if not _is_whole(_part_file(folder, part), labels[part.start : part.stop])]
    done = sum(map(len, mine)) - sum(map(len, missing))
    report = partial(_report, progress, settings.count)
    report(done)
    if not missing:
        return
    draw = _drawer(run, step, settings, device, weak)
    for part in missing:
        batches = []
        for start in range(part.start, part.stop, BATCH):
            rows = np.arange(start, min(start + BATCH, part.stop))
            batches.append(draw(rows, labels[rows]))
            done += len(rows)
            report(done)
        write_samples(_part_file(folder, part), torch.cat(batches), labels[part.start : part.stop])


def _report(progress: Progress | None, count: int, done: int) -> None:
    if progress:
        progress(done, count)


def _is_whole(file: Path, labels: Int[Tensor, "b"]) -> bool:
    try:
        stored = read_samples(file)
    except ValueError:  # missing or damaged
        return False
    return stored.labels is not None and torch.equal(stored.labels, labels)


Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # of x_t, t and y, as a backbone


def _drawer(
    run: Run, step: int, settings: SamplingConfig, device: str, weak: Weak | None
) -> Callable[[np.ndarray, Tensor], Tensor]:
    """A function from sample numbers and labels to images on the CPU."""
    backbone, vae = load_backbone(run, step, settings.weights).to(device), load_run_vae(run, device)
    against = None if weak is None else load_backbone(weak.run, weak.step, settings.weights).to(device)
    which, cause = f"of run {run.name} at step {step}", f"did the run diverge before step {step}?"
    batches = FittingBatches(BATCH)

    @tf32(run.config.training.tf32)
    def draw(rows: np.ndarray, labels: Int[Tensor, "b"]) -> UInt8[Tensor, "b c x y"]:
        def images(part: slice) -> Tensor:
            z = sample_latents(run, settings, backbone, backbone, rows[part], labels[part], which, cause, against)
            return decode_samples(vae, z, rows[part], which, cause)

        return torch.cat([made for _, made in batches(images, len(rows))])

    return draw


def sample_latents(
    run: Run,
    settings: SamplingConfig,
    backbone: TransformerBackbone,
    velocity: Velocity,
    rows: np.ndarray,
    labels: Int[Tensor, "b"],
    which: str,
    cause: str,
    weak: Velocity | None = None,
) -> Float[Tensor, "b c h w"]:
    """Latents of the samples numbered ``rows``, of a ``velocity`` that is the backbone or an edited one.

    The noise is that of their numbers. ``weak`` is as of `sample`. Raises ValueError for values that are not finite;
    ``which`` and ``cause`` are the words for the samples and for a likely reason.
    """
    device = next(backbone.parameters()).device
    shape = (backbone.channels, backbone.height, backbone.height)

    def drawn(stream: str) -> Tensor:
        return sent(normal(settings.seed, stream, rows, shape), device)

    try:
        with reduced(chosen_precision(settings.precision), device):
            return sample(
                velocity,
                drawn("sample"),
                labels.to(device),
                null_label=None if settings.guidance_scale == 1 or weak is not None else backbone.null_label,
                sampler=settings.sampler,
                steps=settings.steps,
                guidance=Guidance.of(settings),
                path=get_path(run.config.diffusion.path),
                last_step=settings.last_step,
                shift=settings.shift,
                step_noise=lambda i: drawn(f"sample-step-{i}"),
                weak=weak,
            )
    except NotFinite as error:
        after = f"step {error.step} of {settings.steps} of the sampler"
        raise ValueError(f"sample {rows[error.row]} {which} is not finite after {after}; {cause}") from error


def decode_samples(
    vae: VAE, z: Float[Tensor, "b c h w"], rows: np.ndarray, which: str, cause: str
) -> UInt8[Tensor, "b k x y"]:
    """The images of latents on the CPU; ValueError, as `sample_latents`, for those that are not finite."""
    try:
        return vae.decode(z).cpu()
    except ValueError as error:
        raise ValueError(f"samples {rows[0]} to {rows[-1]} {which}, decoded: {error}; {cause}") from error


def _join(run: Run, settings: SamplingConfig, folder: Path, file: Path) -> None:
    labels = labels_of(settings, len(run.latents["classes"]))
    files = (_part_file(folder, part) for part in _parts(settings.count))
    write_parts(file, settings.count, (read_samples(part).images for part in files), labels)
