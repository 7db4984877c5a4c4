"""Find, download and read published weight files, without executing code in them."""

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
    """Folder of weight files that the user downloaded: ``$WORKBENCH_WEIGHTS``, or ``~/.cache/workbench``."""
    return home_path(os.environ.get("WORKBENCH_WEIGHTS") or "~/.cache/workbench")


def hub_folder(repository: str, files: Sequence[str]) -> Path:
    """Folder with ``files`` of a model hub repository: in the hub's cache, downloaded if necessary.

    Raises the hub client's exceptions, whose classes change with its version, if a file cannot be downloaded.
    """
    import huggingface_hub

    cached = [huggingface_hub.try_to_load_from_cache(repository, file) for file in files]
    paths = [path for path in cached if isinstance(path, str)]
    if len(paths) < len(cached):
        # A download retries for a minute if the hub is unreachable; this fails at once.
        for file in files:
            url = huggingface_hub.hf_hub_url(repository, file)
            huggingface_hub.get_hf_file_metadata(url, timeout=_HUB_SECONDS)
        paths = [huggingface_hub.hf_hub_download(repository, file) for file in files]
    return Path(paths[0]).parent


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read the named tensors of a .safetensors file or a pickle (under "state_dict" if present), as float32.

    Entries that are not tensors are left out; no code in the file is executed. Raises ValueError naming a file that is
    missing, damaged, needs code execution or has no tensors, and a tensor that is not dense, real and finite.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded = load_file(file)
        else:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises any kind of error
        raise ValueError(
            f"{file} is damaged, or has more than plain tensors and is not opened, as that would execute its code "
            f"({type(error).__name__})"
        ) from error
    table = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    named = table if isinstance(table, Mapping) else {}
    tensors = {str(key): _plain(value, f"{key} of {file}") for key, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{file} has no dictionary of tensors")
    return tensors


def _plain(value: Tensor, name: str) -> Tensor:
    """A tensor as float32; ValueError naming it unless it is dense, real and finite."""
    if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex():
        kind = f"{value.dtype} with layout {value.layout} on {value.device}"
        raise ValueError(f"{name} is not a dense tensor of real numbers: it is {kind}".replace("torch.", ""))
    value = value.float()
    wrong = int((~value.isfinite()).sum())
    if wrong:
        raise ValueError(f"{name} has {wrong:,} non-finite numbers of {value.numel():,}")
    return value


def read_statistics(file: Path, channels: int) -> tuple[Float[Tensor, "{channels}"], Float[Tensor, "{channels}"]]:
    """Mean and standard deviation of each latent channel, in LightningDiT's format; ValueError if they are missing."""
    values = read_tensors(file)
    if any(key not in values or values[key].numel() != channels for key in ("mean", "std")):
        shapes = {key: tuple(value.shape) for key, value in values.items()}
        raise ValueError(f"{file} must have mean and std of {channels} channels; it has {shapes}")
    mean, std = (values[key].reshape(-1) for key in ("mean", "std"))
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise ValueError(f"{file} has non-finite numbers, or standard deviations that are not positive")
    return mean, std
