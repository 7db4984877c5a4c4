"""Import published checkpoints as runs, and export runs as published checkpoints.

An imported run is an ordinary run folder with one checkpoint and no optimizer. It can be sampled, its features can be
extracted, and it can be a teacher. Its provenance records under ``origin`` the source file and what it contained.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from workbench.backbones.conversion import FAMILIES, to_diffusers, to_published
from workbench.backbones.released import Released, read_released
from workbench.config import Config, backbone_sizes, from_dict, refuse_unknown, to_yaml
from workbench.data.vae import load_vae
from workbench.files import WEIGHT_ENDINGS, hold_lock, write_atomically, write_json
from workbench.runs.checkpoints import save_checkpoint
from workbench.runs.models import check_null_row, load_weights, part_of_model
from workbench.runs.store import Run, find_runs, machine

_PATIENCE = 60.0  # seconds to wait for another process that creates a run
_USUAL_VAES = {4: ("sd-vae", 8), 32: ("va-vae", 16)}  # by channels: VAE of published models, downsampling factor
_NAME = 60  # characters of a run's name, at most four bytes each
_HEADS = "heads."  # prefix in the checkpoint's model part of weights that are not the backbone's


@dataclass(frozen=True)
class _Source:
    """The VAE of the model's latents; `hash` is None if only its name is known."""

    name: str
    hash: str | None
    factor: int
    pixel_channels: int


def import_run(
    path: str | Path,
    root: Path,
    *,
    family: str | None = None,
    weights: str = "ema",
    name: str | None = None,
    vae: str | None = None,
    pixel_channels: int = 3,
    height: int | None = None,
    classes: int | None = None,
) -> Run:
    """Import a published checkpoint, read by ``read_released``, as a run under ``root``.

    Importing the same file with the same options returns the existing run.

    ``vae`` is the VAE of its latents, loaded now to record its hash, for images of ``pixel_channels``. None
    assumes the usual one by name ("sd-vae" for 4 channels, "va-vae" for 32); any VAE of that name is accepted later.
    ``classes`` is the number of classes, for a file that does not record it. Raises ValueError, with nothing written,
    for a file that cannot be used, a VAE that does not fit, and latents of any other number of channels without a
    VAE.
    """
    path = Path(path)
    released = read_released(path, family=family, weights=weights, height=height, classes=classes)
    source = _source(vae, released.channels, pixel_channels)
    with path.open("rb") as file:  # gigabytes, so hashed in chunks
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    key = [digest, released.family, weights, released.height, source.name, source.hash]
    if not released.null_row:  # the same file can be read with or without a null row
        key.append("no null row")
    fingerprint = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    existing = _find(fingerprint, root)
    if existing is not None:
        return existing
    name = _printable(name or f"{released.family}-{path.stem}")
    origin = {"file": path.name, "sha256": digest, "weights": weights}
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=root, prefix=".import-") as temporary:
        run = Run(Path(temporary) / f"{name}-{fingerprint[:8]}")
        run.folder.mkdir()
        _write(run, released, _config(released, name, source))
        return _publish(run, root, _provenance(fingerprint, released, source, origin))


def export_run(run: Run, path: str | Path, *, family: str, step: int | None = None, weights: str = "ema") -> Path:
    """Write a run's weights in the format of ``family``'s code, to a .pt, .pth or .safetensors file.

    Files of SiT and DiT, and all .safetensors files, are flat state dicts of ``weights`` ("ema" or "raw"). The others
    hold both, as "ema" and "model", with "steps", and the number of classes under "args". Heads of an imported file are
    exported to its own family. Heads trained here have other names and are left out, so code that expects them needs
    ``strict=False``. Raises ValueError for a family of another backbone, a step without a checkpoint, and a file that
    cannot be written.
    """
    refuse_unknown("family", family, FAMILIES)
    refuse_unknown("weights", weights, ("ema", "raw"))
    path, kind = Path(path), FAMILIES[family]
    refuse_unknown("checkpoint file ending", path.suffix, WEIGHT_ENDINGS)
    backbone = run.config.backbone.name
    if backbone != kind.backbone:
        fitting = ", ".join(name for name, other in FAMILIES.items() if other.backbone == backbone) or "nothing"
        raise ValueError(f"run {run.name} has backbone {backbone}: it can be exported as {fitting}, not as {family}")
    checkpoint = run.checkpoint(step)
    own = run.provenance.get("origin", {}).get("family") == family
    heads = part_of_model(checkpoint, _HEADS) if own else {}

    def published(which: str) -> dict[str, Tensor]:
        return {**to_published(load_weights(run, checkpoint.step, which), family), **heads}

    classes = _shape(run)["classes"]  # ambiguous in the label table, which may have a null row
    if path.suffix == ".safetensors":
        _save(path, lambda file: save_file(published(weights), file, metadata={"num_classes": str(classes)}))
    elif kind.wrapped:
        both = {"model": published("raw"), "ema": published("ema"), "steps": checkpoint.step}
        both["args"] = {"num_classes": classes}
        _save(path, lambda file: torch.save(both, file))
    else:
        _save(path, lambda file: torch.save(published(weights), file))
    return path


def export_diffusers(run: Run, folder: str | Path, *, step: int | None = None, weights: str = "ema") -> Path:
    """Write config.json, diffusion_pytorch_model.safetensors and a README.md that shows how to call the model.

    A SiT or DiT without QK normalization becomes a ``DiTTransformer2DModel`` of diffusers. Diffusers has no class for
    other backbones; they keep their own parameter names and configuration. Raises ValueError for a model without a
    null row.
    """
    refuse_unknown("weights", weights, ("ema", "raw"))
    check_null_row(run, "diffusers' class and the README of the folder count on one")
    folder, backbone, shape = Path(folder), run.config.backbone, _shape(run)
    checkpoint = run.checkpoint(step)
    tensors = load_weights(run, checkpoint.step, weights)
    if backbone.name in ("sit", "dit") and not backbone.options["qk_norm"]:
        config = _diffusers_config(run)
        note = _VELOCITY if backbone.name == "sit" else _NOISE
        tensors = to_diffusers(tensors, config["num_layers"], velocity=backbone.name == "sit")
    else:
        config, note = {"backbone": backbone.name, **backbone.options, **shape}, _PLAIN
    weights_file = folder / "diffusion_pytorch_model.safetensors"
    _save(weights_file, lambda file: save_file(tensors, file, metadata={"format": "pt"}))
    write_json(folder / "config.json", config)
    text = f"# {run.name}, step {checkpoint.step}, {weights} weights\n\n" + note.format(
        path=run.config.diffusion.path, backbone=backbone.name, **shape
    )
    write_atomically(folder / "README.md", text.encode())
    return folder


def _source(name: str | None, channels: int, pixel_channels: int) -> _Source:
    if name is None:
        if channels not in _USUAL_VAES:
            raise ValueError(f"latents of {channels} channels have no usual VAE; name the VAE that made them")
        name, factor = _USUAL_VAES[channels]
        return _Source(name, None, factor, pixel_channels)
    vae = load_vae(name, channels if name == "identity" else pixel_channels)
    if vae.channels != channels:
        raise ValueError(f"VAE {name!r} makes latents of {vae.channels} channels; the model takes {channels}")
    return _Source(name, vae.hash, vae.factor, vae.pixel_channels)


def _printable(name: str) -> str:
    """A folder name that is valid on any file system: no slashes or unprintable characters, not too long."""
    return "".join(letter if letter.isprintable() and letter != "/" else "-" for letter in name)[:_NAME]


def _config(released: Released, name: str, source: _Source) -> Config:
    """A complete configuration with its family's sampling options; training options, unknown, are at their defaults."""
    return from_dict(
        {
            "name": name,
            "data": {"name": "image-folder", "size": released.height * source.factor},
            "vae": {"name": source.name},
            "backbone": {"name": released.backbone, **released.options},
            "diffusion": {"path": released.path, **({} if released.null_row else {"label_dropout": 0.0})},
            "training": {"steps": max(released.step, 1)},
            "sampling": dict(FAMILIES[released.family].sampling),
        }
    )


def _provenance(fingerprint: str, released: Released, source: _Source, origin: dict[str, Any]) -> dict[str, Any]:
    """Provenance in the format of a trained run; class names and image hash are unknown."""
    turned = FAMILIES[released.family].data_at_one
    return {
        "fingerprint": fingerprint,
        "created": time.time(),
        **machine(),
        "latents": {
            "content": None,
            "channels": released.channels,
            "height": released.height,
            "classes": [str(label) for label in range(released.classes)],
            "null_row": released.null_row,
            "vae": {"name": source.name, "hash": source.hash},
            "pixel_channels": source.pixel_channels,
        },
        "origin": {
            **origin,
            "family": released.family,
            "layout": "wrapped" if released.wrapped else "flat",
            "label_table": released.label_table,
            "converted": "t -> 1 - t, v -> -v" if turned else "nothing",
            "tensors": len(released.tensors),
            "heads": sorted(released.heads),
            "args": released.args,
        },
    }


def _write(run: Run, released: Released, config: Config) -> None:
    model = {f"backbone.{key}": value for key, value in released.tensors.items()}
    model |= {f"{_HEADS}{key}": value.contiguous() for key, value in released.heads.items()}
    parts = {"model": model, "ema": released.tensors}
    save_checkpoint(run.folder / "checkpoints", released.step, parts, {})
    write_atomically(run.folder / "config.yaml", to_yaml(config).encode())
    run.write_status("finished", released.step, steps=config.training.steps, processes=0)


def _publish(run: Run, root: Path, provenance: dict[str, Any]) -> Run:
    """Move a complete run to ``root`` and return it, or the run that another process has put there."""
    with hold_lock(root / ".lock", _PATIENCE):
        existing = _find(provenance["fingerprint"], root)
        if existing is not None:
            return existing
        published = Run(root / run.name)
        if (published.folder / "provenance.json").exists():
            raise ValueError(f"{published.folder} holds another run")
        if published.folder.exists():  # a process was killed between the next two lines
            shutil.rmtree(published.folder)
        os.replace(run.folder, published.folder)
        # Last, because a folder counts as a run once it has this file.
        write_json(published.folder / "provenance.json", provenance)
    return published


def _save(path: Path, write: Callable[[Path], None]) -> None:
    """Write a large file with ``write`` beside ``path`` and rename it; ValueError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
            temporary = Path(folder) / path.name
            write(temporary)
            temporary.chmod(0o644)
            os.replace(temporary, path)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # a full disk raises one of these, depending on the writer
        free = shutil.disk_usage(path.parent).free / 1e6 if path.parent.is_dir() else 0.0
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be written: {reason}; its disk has {free:,.1f} MB free") from error


def _find(fingerprint: str, root: Path) -> Run | None:
    return next((run for run in find_runs(root) if run.fingerprint == fingerprint), None)


def _shape(run: Run) -> dict[str, int]:
    latents = run.latents
    return {"channels": latents["channels"], "height": latents["height"], "classes": len(latents["classes"])}


def _diffusers_config(run: Run) -> dict[str, Any]:
    options, shape = run.config.backbone.options, _shape(run)
    size = backbone_sizes(run.config.backbone.name)[options["size"]]
    return {
        "_class_name": "DiTTransformer2DModel",
        "_diffusers_version": version("diffusers"),
        "num_attention_heads": size.heads,
        "attention_head_dim": size.width // size.heads,
        "in_channels": shape["channels"],
        "out_channels": shape["channels"] * (2 if options.get("learn_sigma") else 1),
        "num_layers": size.depth,
        "sample_size": shape["height"],
        "patch_size": options["patch"],
        "num_embeds_ada_norm": shape["classes"],
        "norm_eps": 1e-6,  # diffusers' default is 1e-5
    }


_VELOCITY = """\
    model = diffusers.DiTTransformer2DModel.from_pretrained(folder).eval()
    v = model(x_t, timestep=t, class_labels=y).sample[:, :{channels}]

x_t is b x {channels} x {height} x {height}; t, a float in [0, 1], is 0 at data and 1 at noise, and is not multiplied
by 1000; y is a class below {classes}, or {classes} for none. v is the velocity dx_t/dt on the {path} path: integrate
it from noise at t = 1 to t = 0. It predicts no noise, so `DiTPipeline` and its schedulers do not fit it.

diffusers spaces the frequencies of the time features as i / 127, SiT as i / 128. The first matrix of the time
embedding was fitted to the former: for t in [0, 1] the outputs agree to rounding, outside they do not.
"""
_NOISE = """\
    model = diffusers.DiTTransformer2DModel.from_pretrained(folder).eval()
    eps = model(x, timestep=step, class_labels=y).sample[:, :{channels}]

x is b x {channels} x {height} x {height} at a step 0 .. 999 of DDPM with linear betas 1e-4 .. 0.02; y is a class below
{classes}, or {classes} for none. With learn_sigma the other {channels} channels interpolate the variance.

diffusers spaces the frequencies of the time features as i / 127, DiT as i / 128. The weights are DiT's, unchanged, so
diffusers' outputs differ from DiT's own.
"""
_PLAIN = """\
The weights of a {backbone} under the names of its published files; diffusers has no class for it. config.json holds
the arguments of `workbench.backbones.{backbone}.Backbone`, whose `load_state_dict` takes them. It maps x_t
(b x {channels} x {height} x {height}), t in [0, 1] (0 data, 1 noise) and labels y (a class below {classes}, or
{classes} for none) to the velocity dx_t/dt on the {path} path.
"""
