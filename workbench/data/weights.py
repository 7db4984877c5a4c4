"""Weight files of others: where they lie, how they are fetched, and how they are read without running their code."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.files import home_path

STATISTICS = "latents_stats.pt"  # LightningDiT's name for the mean and deviation of each latent channel
_HUB_SECONDS = 5.0


def weights_folder() -> Path:
    """Where weight files that the user fetched are looked for: ``$WORKBENCH_WEIGHTS``, or ``~/.cache/workbench``."""
    return home_path(os.environ.get("WORKBENCH_WEIGHTS") or "~/.cache/workbench")


def hub_folder(repository: str, files: Sequence[str]) -> Path:
    """The folder that holds ``files`` of a repository at the model hub: its cache, else downloaded into it.

    Raises whatever the hub's client does, whose classes change with its version, when a file cannot be had.
    """
    import huggingface_hub

    cached = [huggingface_hub.try_to_load_from_cache(repository, file) for file in files]
    if not all(isinstance(path, str) for path in cached):
        # A download asks an unreachable hub again and again for a minute; this asks once.
        for file in files:
            url = huggingface_hub.hf_hub_url(repository, file)
            huggingface_hub.get_hf_file_metadata(url, timeout=_HUB_SECONDS)
        cached = [huggingface_hub.hf_hub_download(repository, file) for file in files]
    return Path(cached[0]).parent


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The named tensors of a .safetensors file, or of a pickle (under "state_dict" if it has that), as float32.

    Entries that are no tensors are left out; no code in the file is run. Raises ValueError naming a file that is
    missing, damaged, asks for code, or holds no tensors, and a tensor that is not dense, real and finite.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded = load_file(file)
        else:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle ends in errors of every kind
        raise ValueError(
            f"{file} is damaged, or holds more than plain tensors and is not opened, since that would run its code "
            f"({type(error).__name__})"
        ) from error
    table = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    named = table if isinstance(table, Mapping) else {}
    tensors = {str(key): _plain(value, f"{key} of {file}") for key, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{file} holds no table of tensors")
    return tensors


def _plain(value: Tensor, name: str) -> Tensor:
    """A tensor as float32; ValueError naming it unless it is dense, real and finite."""
    if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex():
        kind = f"{value.dtype} with layout {value.layout} on {value.device}"
        raise ValueError(f"{name} is no dense tensor of real numbers: it is {kind}".replace("torch.", ""))
    value = value.float()
    wrong = int((~value.isfinite()).sum())
    if wrong:
        raise ValueError(f"{name} has {wrong:,} of {value.numel():,} numbers that are not finite")
    return value


def read_statistics(file: Path, channels: int) -> tuple[Float[Tensor, "{channels}"], Float[Tensor, "{channels}"]]:
    """Mean and deviation of each latent channel, as LightningDiT keeps them; ValueError if the file has no such."""
    values = read_tensors(file)
    if any(key not in values or values[key].numel() != channels for key in ("mean", "std")):
        shapes = {key: tuple(value.shape) for key, value in values.items()}
        raise ValueError(f"{file} must hold mean and std of {channels} channels; it holds {shapes}")
    mean, std = (values[key].reshape(-1) for key in ("mean", "std"))
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise ValueError(f"{file} holds numbers that are not finite, or deviations that are not positive")
    return mean, std
