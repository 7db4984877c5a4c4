"""Runs from published files and published files from runs.

An imported run is a folder like any other, with one checkpoint and no optimizer: it can be sampled, looked into and
teach. Its provenance says under ``origin`` which file it came from and what was found there.
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
from workbench.data.codecs import load_codec
from workbench.files import WEIGHT_ENDINGS, hold_lock, write_atomically, write_json
from workbench.runs.checkpoints import save_checkpoint
from workbench.runs.models import check_null_row, load_weights, part_of_model
from workbench.runs.store import Run, find_runs, machine

_PATIENCE = 60.0  # seconds that another process may take to make a run
_USUAL_CODECS = {4: ("sd-vae", 8), 32: ("va-vae", 16)}  # by channels: that of the published files, and its factor
_NAME = 60  # characters of a run's name, at most four bytes each
_HEADS = "heads."  # in the checkpoint's model part: weights of the file that are not the backbone's


@dataclass(frozen=True)
class _Source:
    """The codec of a file's latents; `hash` is None if it is known by name alone."""

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
    codec: str | None = None,
    pixel_channels: int = 3,
    height: int | None = None,
    classes: int | None = None,
) -> Run:
    """The run under ``root`` of a published file, read by ``read_released``; the same file read alike is one run.

    ``codec`` is the codec of its latents, loaded now to record its hash, for images of ``pixel_channels``. None
    takes the usual one by name alone ("sd-vae" for 4 channels, "va-vae" for 32), and any codec of that name counts
    as the right one. ``classes`` is the number of classes, for a file that does not tell it. Raises ValueError, with
    nothing written, for a file that cannot be used as it is, a codec that does not fit, and latents of any other
    number of channels without a codec.
    """
    path = Path(path)
    released = read_released(path, family=family, weights=weights, height=height, classes=classes)
    source = _source(codec, released.channels, pixel_channels)
    with path.open("rb") as file:  # gigabytes: not read at once
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    way = [digest, released.family, weights, released.height, source.name, source.hash]
    if not released.null_row:  # of one file the rows are given, so this tells the two ways of reading them apart
        way.append("no null row")
    mark = hashlib.sha256(json.dumps(way).encode()).hexdigest()[:16]
    existing = _find(mark, root)
    if existing is not None:
        return existing
    name = _printable(name or f"{released.family}-{path.stem}")
    origin = {"file": path.name, "sha256": digest, "weights": weights}
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=root, prefix=".import-") as temporary:
        run = Run(Path(temporary) / f"{name}-{mark[:8]}")
        run.folder.mkdir()
        _write(run, released, _config(released, name, source))
        return _publish(run, root, _provenance(mark, released, source, origin))


def export_run(run: Run, path: str | Path, *, family: str, step: int | None = None, weights: str = "ema") -> Path:
    """Write a run's weights as the code of ``family`` loads them, to a .pt, .pth or .safetensors file.

    SiT and DiT have flat files, and a .safetensors file is always flat: it holds ``weights`` ("ema" or "raw"). The
    others hold both, as "ema" and "model", "steps", and under "args" the number of classes. The heads of an imported
    file go back into its own family; heads trained here have other names and are left out, so code that insists on
    them needs ``strict=False``. Raises ValueError for a family of another backbone, a step that was not kept and a
    file that cannot be written.
    """
    refuse_unknown("family", family, FAMILIES)
    refuse_unknown("weights", weights, ("ema", "raw"))
    path, kind = Path(path), FAMILIES[family]
    refuse_unknown("the ending of a checkpoint's name", path.suffix, WEIGHT_ENDINGS)
    backbone = run.config.backbone.name
    if backbone != kind.backbone:
        fitting = ", ".join(name for name, other in FAMILIES.items() if other.backbone == backbone) or "nothing"
        raise ValueError(f"run {run.name} is a {backbone}: it can be exported as {fitting}, not as {family}")
    checkpoint = run.checkpoint(step)
    own = run.provenance.get("origin", {}).get("family") == family
    heads = part_of_model(checkpoint, _HEADS) if own else {}

    def published(which: str) -> dict[str, Tensor]:
        return {**to_published(load_weights(run, checkpoint.step, which), family), **heads}

    classes = _shape(run)["classes"]  # the label table alone does not tell
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
    """Write config.json, diffusion_pytorch_model.safetensors and a README.md that says how to call the model.

    A SiT or DiT without norms of queries and keys becomes a ``DiTTransformer2DModel`` of diffusers; another backbone,
    for which diffusers has no class, keeps its own names beside its own configuration. Raises ValueError for a model
    without a null row.
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
        if channels not in _USUAL_CODECS:
            raise ValueError(f"no codec is usual for latents of {channels} channels; name the one they come from")
        name, factor = _USUAL_CODECS[channels]
        return _Source(name, None, factor, pixel_channels)
    codec = load_codec(name, channels if name == "identity" else pixel_channels)
    if codec.channels != channels:
        raise ValueError(f"codec {name!r} makes latents of {codec.channels} channels; the model takes {channels}")
    return _Source(name, codec.hash, codec.factor, codec.pixel_channels)


def _printable(name: str) -> str:
    """A name that can be a folder's on any file system: no slashes, nothing unprintable, not too long."""
    return "".join(letter if letter.isprintable() and letter != "/" else "-" for letter in name)[:_NAME]


def _config(released: Released, name: str, source: _Source) -> Config:
    """A complete configuration, sampled as its family's code does; how it was trained, untold, is at the defaults."""
    return from_dict(
        {
            "name": name,
            "data": {"name": "image-folder", "size": released.height * source.factor},
            "codec": {"name": source.name},
            "backbone": {"name": released.backbone, **released.options},
            "diffusion": {"path": released.path, **({} if released.null_row else {"label_dropout": 0.0})},
            "training": {"steps": max(released.step, 1)},
            "sampling": dict(FAMILIES[released.family].sampling),
        }
    )


def _provenance(mark: str, released: Released, source: _Source, origin: dict[str, Any]) -> dict[str, Any]:
    """As of a trained run; of the classes only the numbers are known, of the images nothing."""
    turned = FAMILIES[released.family].data_at_one
    return {
        "fingerprint": mark,
        "created": time.time(),
        **machine(),
        "latents": {
            "content": None,
            "channels": released.channels,
            "height": released.height,
            "classes": [str(label) for label in range(released.classes)],
            "null_row": released.null_row,
            "codec": {"name": source.name, "hash": source.hash},
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
    """Move a complete run to its place under ``root``, unless another process was faster."""
    with hold_lock(root / ".lock", _PATIENCE):
        existing = _find(provenance["fingerprint"], root)
        if existing is not None:
            return existing
        place = Run(root / run.name)
        if (place.folder / "provenance.json").exists():
            raise ValueError(f"{place.folder} holds another run")
        if place.folder.exists():  # a process was killed between the next two lines
            shutil.rmtree(place.folder)
        os.replace(run.folder, place.folder)
        # Last, because a folder counts as a run once it has this file.
        write_json(place.folder / "provenance.json", provenance)
    return place


def _save(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file of gigabytes beside ``path``, then put it there; ValueError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
            temporary = Path(folder) / path.name
            write(temporary)
            temporary.chmod(0o644)
            os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is each of them, by who writes
        free = shutil.disk_usage(path.parent).free / 1e6 if path.parent.is_dir() else 0.0
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be written: {reason}; its disk has {free:,.1f} MB free") from error


def _find(mark: str, root: Path) -> Run | None:
    return next((run for run in find_runs(root) if run.fingerprint == mark), None)


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
