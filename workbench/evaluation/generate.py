"""Images from a run: sample i is the same for every method, batch size and count."""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from workbench.config import SamplingConfig
from workbench.diffusion.guidance import Guidance
from workbench.diffusion.paths import get_path
from workbench.diffusion.randomness import normal
from workbench.diffusion.sampling import sample
from workbench.files import write_atomically
from workbench.runs.models import check_null_class, load_backbone, load_run_codec
from workbench.runs.store import Run

_BATCH = 100


@dataclass(frozen=True)
class Samples:
    """Generated images and the classes that were asked for (sample i: class i modulo the number of classes)."""

    images: UInt8[Tensor, "n c x y"]
    labels: Int[Tensor, "n"]


def generate(
    run: Run, step: int, settings: SamplingConfig, progress: Callable[[int, int], None] | None = None
) -> Samples:
    """``settings.count`` images from the checkpoint of ``step``, kept in the run's ``samples`` folder.

    ``progress(done, count)`` is called after each batch. Raises ValueError for a step that was not kept, and for
    guidance of a run whose null class was not trained.
    """
    if settings.guidance_scale != 1:
        check_null_class(run, "it cannot be guided: set sampling.guidance_scale to 1")
    checkpoint = run.checkpoint(step)
    described = {
        **asdict(settings),
        "weights_hash": checkpoint.hash("ema" if settings.weights == "ema" else "model"),
    }
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
    file = run.folder / "samples" / f"step-{step:08d}-{key}.npz"
    if file.is_file():
        with np.load(file) as arrays:
            images, labels = torch.from_numpy(arrays["arr_0"]), torch.from_numpy(arrays["labels"])
        # With one channel a permuted tensor counts as contiguous in either order, and its strides would choose another
        # convolution, with other rounding, than those of the images as they were generated.
        return Samples(images.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format), labels)
    samples = _generate(run, step, settings, progress)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, arr_0=samples.images.permute(0, 2, 3, 1).numpy(), labels=samples.labels.numpy())
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, buffer.getvalue())
    return samples


def _generate(run: Run, step: int, settings: SamplingConfig, progress) -> Samples:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = load_backbone(run, step, settings.weights).to(device)
    codec = load_run_codec(run, device)
    shape = (backbone.channels, backbone.height, backbone.height)
    images, labels = [], torch.arange(settings.count) % backbone.classes
    for start in range(0, settings.count, _BATCH):
        indices = np.arange(start, min(start + _BATCH, settings.count))
        z = sample(
            backbone,
            normal(settings.seed, "sample", indices, shape).to(device),
            labels[indices].to(device),
            null_label=backbone.null_label,
            sampler=settings.sampler,
            steps=settings.steps,
            guidance=Guidance.of(settings),
            path=get_path(run.config.diffusion.path),
            last_step=settings.last_step,
            shift=settings.shift,
            step_noise=lambda i, indices=indices: normal(settings.seed, f"sample-step-{i}", indices, shape).to(device),
        )
        images.append(codec.decode(z).cpu())
        if progress:
            progress(int(indices[-1]) + 1, settings.count)
    return Samples(torch.cat(images), labels)
