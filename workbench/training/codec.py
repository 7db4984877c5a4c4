"""Training of the small codec: a diffusers ``AutoencoderKL`` on one image set."""

import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from workbench.data.codecs import load_codec
from workbench.data.images import Images, to_float
from workbench.diffusion.randomness import permutation
from workbench.files import write_atomically


@dataclass(frozen=True)
class CodecTraining:
    """How the codec is trained. The loss is mean |x - x'| + mean (x - x')^2 + kl_weight KL a latent number."""

    steps: int = 4500
    batch: int = 64
    learning_rate: float = 2e-3
    kl_weight: float = 1e-4
    latent_channels: int = 4
    widths: tuple[int, ...] = (16, 48, 96)  # one a resolution: two halvings, 32 -> 8
    precision: str = "bf16"
    seed: int = 0
    log_every: int = 50


def train_codec(train: Images, test: Images, folder: Path, settings: CodecTraining) -> Iterator[dict]:
    """Train on ``train``, measure on ``test``, write ``codec.safetensors`` and ``codec.json`` into ``folder``.

    Yields progress records (step, steps, loss, seconds); the last one is the training record with the
    reconstruction error of the test split. All randomness comes from ``settings.seed``.
    """
    from diffusers.models import AutoencoderKL

    started = time.monotonic()
    architecture = _architecture(train, settings)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = AutoencoderKL(**architecture)
    noise = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps, pct_start=0.05
    )
    for step, indices in enumerate(_batches(len(train), settings), start=1):
        images = to_float(train.batch(indices))
        loss = _loss(model, images, noise, settings)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % settings.log_every == 0 or step == settings.steps:
            seconds = time.monotonic() - started
            yield {"step": step, "steps": settings.steps, "loss": loss.item(), "seconds": seconds}
        if not math.isfinite(loss.item()):
            raise ValueError(f"the codec's loss is {loss.item()} at step {step}; lower learning_rate")
    yield _save(model, architecture, train, test, folder, settings, time.monotonic() - started)


def _architecture(images: Images, settings: CodecTraining) -> dict:
    levels = len(settings.widths)
    return {
        "in_channels": images.channels,
        "out_channels": images.channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": settings.widths,
        "layers_per_block": 1,
        "latent_channels": settings.latent_channels,
        "norm_num_groups": 8,
        "sample_size": images.size,
        "mid_block_add_attention": False,
    }


def _batches(count: int, settings: CodecTraining) -> Iterator[np.ndarray]:
    """Batches of indices, each epoch a fresh permutation; the last partial batch of an epoch is left out."""
    per_epoch = count // settings.batch
    for step in range(settings.steps):
        epoch, position = divmod(step, per_epoch)
        if position == 0:
            order = permutation(settings.seed, "codec", epoch, count)
        yield order[position * settings.batch : (position + 1) * settings.batch]


def _loss(
    model: torch.nn.Module, images: Float[Tensor, "b k x y"], noise: torch.Generator, settings: CodecTraining
) -> Float[Tensor, ""]:
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
        posterior = model.encode(images).latent_dist
        eps = torch.randn(posterior.mean.shape, generator=noise)
        decoded = model.decode(posterior.mean + posterior.std * eps).sample.float()
    kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return F.l1_loss(decoded, images) + F.mse_loss(decoded, images) + settings.kl_weight * kl


def _save(model, architecture, train: Images, test: Images, folder: Path, settings, seconds: float) -> dict:
    """Write the codec, then measure what was written: half-precision weights, as a user will load them."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    sample = train.batch(np.arange(min(len(train), 2000)))
    with torch.no_grad():
        latents = torch.cat([model.encode(to_float(part)).latent_dist.mode() for part in sample.split(256)])
    weights = save({key: value.half().contiguous() for key, value in model.state_dict().items()})
    record = {
        "architecture": architecture,
        "scale": 1.0 / latents.std().item(),
        "shift": latents.mean().item(),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "training": {
            **asdict(settings),
            "data": train.name,
            "origin": train.origin,
            "content": train.content,
        },
        "seconds": round(seconds, 1),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    write_atomically(folder / "codec.safetensors", weights)
    write_atomically(folder / "codec.json", json.dumps(record, indent=1).encode())
    record["reconstruction"] = reconstruction_error(load_codec(str(folder), train.channels), test)
    write_atomically(folder / "codec.json", json.dumps(record, indent=1).encode())
    return record


def reconstruction_error(codec, images: Images, count: int = 2000) -> dict[str, float]:
    """Mean squared and absolute error (pixels in 0..1) and PSNR (dB) of decode(mean) over the first images."""
    squares, absolutes, numbers = 0.0, 0.0, 0
    for start in range(0, min(count, len(images)), 250):
        original = images.batch(np.arange(start, min(start + 250, count, len(images))))
        mean, _ = codec.encode(original).chunk(2, dim=1)
        difference = (codec.decode(mean).float() - original.float()) / 255
        squares += difference.square().sum().item()
        absolutes += difference.abs().sum().item()
        numbers += difference.numel()
    mse = squares / numbers
    return {
        "mse": mse,
        "mae": absolutes / numbers,
        "psnr": -10 * math.log10(mse),
        "count": min(count, len(images)),
    }
