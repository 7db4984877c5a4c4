"""Train a small VAE, a diffusers ``AutoencoderKL``, on one data set."""

import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from workbench.data.images import Images, to_float
from workbench.data.vae import VAE, KLAutoencoder, load_vae
from workbench.diffusion.randomness import normal, permutation
from workbench.files import write_atomically, write_json
from workbench.runs.finite import name_of_not_finite

UNFINISHED = ".training.safetensors"
_WIDTHS = (16, 48, 96, 128, 128)  # channels at the images' resolution, at half of it, and so on
FACTORS = tuple(2**halvings for halvings in range(1, len(_WIDTHS)))


@dataclass(frozen=True)
class VaeTraining:
    """Options of VAE training. The loss is mean |x - x'| + mean (x - x')^2 + kl_weight KL per latent value."""

    steps: int = 4500
    batch: int = 64
    learning_rate: float = 2e-3
    kl_weight: float = 1e-4
    latent_channels: int = 4
    widths: tuple[int, ...] = (16, 48, 96)  # of each resolution: 32, 16, 8
    precision: str = "bf16"
    seed: int = 0
    start: str | None = None  # an autoencoder, by name or folder, whose weights the training starts from
    log_every: int = 50
    save_every: int = 250  # about a minute on two CPU cores


def settings_for(images: Images, *, factor: int | None = None, batch: int | None = None, **chosen: Any) -> VaeTraining:
    """Settings that fit the size of ``images``; those that are ``chosen`` are kept.

    Images are reduced by a factor of 4 (of 8 from 128 pixels on), so that latents of 32 to 256 pixels have a side of 8
    to 32. The batch shrinks as the images grow, so that a step takes about as long at each size. Raises ValueError for
    a size that the factor does not divide, and for a batch of more images than there are.
    """
    factor = factor or (4 if images.size < 128 else 8)
    if factor not in FACTORS:
        raise ValueError(f"an autoencoder's factor is one of {', '.join(map(str, FACTORS))}; got {factor}")
    if images.size % factor:
        raise ValueError(f"images of {images.size} pixels cannot be reduced by a factor of {factor}: change data.size")
    if batch is None:
        batch = min(len(images), max(4, min(64, 64 * 32 // images.size)))
    elif batch > len(images):
        raise ValueError(f"a batch of {batch} is more than the {len(images)} training images")
    return VaeTraining(batch=batch, widths=_WIDTHS[: factor.bit_length()], **chosen)


def train_vae(
    train: Images, test: Images, folder: Path, settings: VaeTraining, device: torch.device | str | None = None
) -> Iterator[dict[str, Any]]:
    """Train on ``train``, evaluate on ``test``, and write ``vae.safetensors`` and ``vae.json`` into ``folder``.

    By default it trains on a GPU if there is one.

    Yields progress records (step, steps, loss, seconds); the last one is the training record with the reconstruction
    error on the test split. Random numbers depend on ``settings.seed`` and the step only, so an interrupted training
    resumes from its last save and ends with the same weights, bit for bit on one machine.

    Raises ValueError if ``folder`` has an unfinished training with other settings or images, or a damaged one, if the
    loss or a weight is not finite, and if the weights to start from are of another architecture.
    """
    architecture = _architecture(train, settings)
    model, optimizer = _built(architecture, settings, device or _device())
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = _Unfinished(folder / UNFINISHED, model, optimizer, _identity(train, settings))
    first, earlier = unfinished.restore()
    started = time.monotonic() - earlier
    for step, indices in enumerate(_batches(len(train), settings, first), start=first + 1):
        loss = _loss(model, to_float(train.batch(indices)), step, settings)
        if not math.isfinite(loss.item()):
            raise ValueError(f"the VAE's loss is {loss.item()} at step {step}; lower learning_rate")
        _update(model, optimizer, loss, *one_cycle(step - 1, settings.steps, settings.learning_rate))
        last, seconds = step == settings.steps, time.monotonic() - started
        if last or step % settings.save_every == 0:
            if name := name_of_not_finite(model.state_dict()):
                raise ValueError(f"{name} of the VAE is not finite after step {step}; lower learning_rate")
            unfinished.save(step, seconds)
        if last or step % settings.log_every == 0:
            yield {"step": step, "steps": settings.steps, "loss": loss.item(), "seconds": seconds}
    record = _save(model, architecture, train, test, folder, settings, time.monotonic() - started)
    unfinished.file.unlink()
    yield record


def estimate_seconds(
    train: Images, settings: VaeTraining, folder: Path, device: torch.device | str | None = None
) -> float:
    """Seconds until a training into ``folder`` is finished, from three steps that are then forgotten."""
    model, optimizer = _built(_architecture(train, settings), settings, device or _device())
    times = []
    for step, indices in zip(range(1, 4), _batches(len(train), settings, 0), strict=False):
        started = time.monotonic()
        _update(model, optimizer, _loss(model, to_float(train.batch(indices)), step, settings), 0.0, 0.9)
        times.append(time.monotonic() - started)
    done, _ = _Unfinished(folder / UNFINISHED, model, optimizer, _identity(train, settings)).restore()
    return min(times) * (settings.steps - done)  # the first step also allocates memory


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _built(
    architecture: dict[str, Any], settings: VaeTraining, device: torch.device | str
) -> tuple[Any, torch.optim.Optimizer]:
    """The model before its first step, and its optimizer."""
    from diffusers.models import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model: Any = AutoencoderKL(**architecture)
    if settings.start is not None:
        before = load_vae(settings.start, architecture["in_channels"])
        own, given = model.state_dict(), before.model.state_dict() if isinstance(before, KLAutoencoder) else {}
        if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in given.items()}:
            raise ValueError(
                f"the weights of {settings.start!r} do not fit an autoencoder with latents of "
                f"{architecture['latent_channels']} channels and widths {settings.widths}: start from one that "
                f"`workbench vae train` made with the same factor"
            )
        model.load_state_dict(given)
    model.to(device)
    return model, torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=1e-4)


def one_cycle(step: int, steps: int, peak: float) -> tuple[float, float]:
    """Learning rate and beta1 at ``step`` (from 0): PyTorch's OneCycleLR with 5 % warm-up, as a function of the step.

    The rate follows half cosines from peak / 25 to ``peak`` to peak / 250,000, beta1 from 0.95 to 0.85 and back.
    """
    warmup = 0.05 * steps - 1
    if step < warmup:
        share, start, end = step / warmup, (peak / 25, 0.95), (peak, 0.85)
    else:
        share, start, end = (step - warmup) / (steps - 1 - warmup), (peak, 0.85), (peak / 25e4, 0.95)
    mix = (1 + math.cos(math.pi * share)) / 2
    return end[0] + (start[0] - end[0]) * mix, end[1] + (start[1] - end[1]) * mix


@dataclass(frozen=True)
class _Unfinished:
    """An unfinished training in one file: tensors of model and optimizer; step, seconds and identity in the header."""

    file: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    identity: dict[str, Any]

    def save(self, step: int, seconds: float) -> None:
        from safetensors.torch import save

        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state[parameter]
            tensors |= {f"optimizer/{name}/{key}": value for key, value in state.items()}
        header = {"step": step, "seconds": seconds, "identity": self.identity}
        write_atomically(self.file, save(tensors, {"training": json.dumps(header)}))

    def restore(self) -> tuple[int, float]:
        """Load the last save; returns its step and seconds, or 0 and 0 if there is none."""
        from safetensors import SafetensorError, safe_open

        if not self.file.is_file():
            return 0, 0.0
        try:
            with safe_open(self.file, "pt") as content:
                header = json.loads(content.metadata()["training"])
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.file} is damaged ({error}); delete it to start again") from error
        self._refuse_another(header["identity"])
        self.model.load_state_dict({name: tensors[f"model/{name}"] for name in self.model.state_dict()})
        parameters = dict(self.model.named_parameters())
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            if part == "optimizer":
                parameter, key = rest.rsplit("/", 1)
                home = value.device if key == "step" else parameters[parameter].device
                self.optimizer.state[parameters[parameter]][key] = value.to(home)
        return header["step"], header["seconds"]

    def _refuse_another(self, identity: dict[str, Any]) -> None:
        different = [key for key, value in self.identity.items() if identity.get(key) != value]
        if different:
            saved, requested = ({key: values.get(key) for key in different} for values in (identity, self.identity))
            raise ValueError(
                f"{self.file} is an unfinished training with {_listed(saved)}, not {_listed(requested)}; "
                f"finish that one, or delete the file to start again"
            )


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _identity(train: Images, settings: VaeTraining) -> dict[str, Any]:
    """Settings and data that determine the weights, as JSON values."""
    free = ("log_every", "save_every")
    deciding = {key: value for key, value in asdict(settings).items() if key not in free}
    if settings.start is not None:
        deciding["start"] = load_vae(settings.start, train.channels).hash
    return json.loads(json.dumps({**deciding, "data": train.name, "content": train.content}))


def _architecture(images: Images, settings: VaeTraining) -> dict[str, Any]:
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


def _batches(count: int, settings: VaeTraining, first: int) -> Iterator[np.ndarray]:
    """Batches of indices from step ``first`` (from 0) on: a permutation per epoch, without its partial batch."""
    per_epoch = count // settings.batch
    for step in range(first, settings.steps):
        epoch, position = divmod(step, per_epoch)
        if position == 0 or step == first:
            order = permutation(settings.seed, "vae", epoch, count)
        yield order[position * settings.batch : (position + 1) * settings.batch]


def _update(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Float[Tensor, ""], rate: float, beta1: float
) -> None:
    for group in optimizer.param_groups:
        group["lr"], group["betas"] = rate, (beta1, group["betas"][1])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _loss(model: Any, images: Float[Tensor, "b k x y"], step: int, settings: VaeTraining) -> Float[Tensor, ""]:
    images = images.to(model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        posterior = model.encode(images).latent_dist
        (eps,) = normal(settings.seed, "vae", [step], posterior.mean.shape)
        decoded = model.decode(posterior.mean + posterior.std * eps.to(images.device)).sample.float()
    kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return F.l1_loss(decoded, images) + F.mse_loss(decoded, images) + settings.kl_weight * kl


def _save(
    model: Any,
    architecture: dict[str, Any],
    train: Images,
    test: Images,
    folder: Path,
    settings: VaeTraining,
    seconds: float,
) -> dict[str, Any]:
    """Write the VAE with half-precision weights, and measure its reconstruction error after loading it again."""
    from safetensors.torch import save

    model.eval().cpu()
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
        **({} if settings.start is None else {"start": load_vae(settings.start, train.channels).hash}),
    }
    write_atomically(folder / "vae.safetensors", weights)
    write_json(folder / "vae.json", record)
    record["reconstruction"] = reconstruction_error(load_vae(str(folder), train.channels), test)
    write_json(folder / "vae.json", record)
    return record


def reconstruction_error(vae: VAE, images: Images, count: int = 2000) -> dict[str, float]:
    """Mean squared and absolute error (pixels in 0..1) and PSNR (dB) of decode(mean) on the first ``count`` images."""
    squares, absolutes, numbers = 0.0, 0.0, 0
    for start in range(0, min(count, len(images)), 250):
        original = images.batch(np.arange(start, min(start + 250, count, len(images))))
        mean, _ = vae.encode(original).chunk(2, dim=1)
        difference = (vae.decode(mean).float() - original.float()) / 255
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
