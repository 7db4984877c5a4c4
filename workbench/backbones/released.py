"""Published checkpoints of diffusion transformers, read from their files into weights of this package's backbones.

What a file holds is told from its tensors; nothing in it is executed.
"""

import argparse
import math
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.backbones.conversion import FAMILIES, Weights, turn_time
from workbench.backbones.layers import sincos_positions
from workbench.backbones.lightningdit import Rotation
from workbench.config import plugin_class, plugin_options, refuse_unknown

_HEADS = ("projectors", "projectors_final", "ap_head")  # of REPA, Self-Transcendence and SRA
_PATHS = {"linear": "linear", "cosine": "cosine", "cos": "cosine", "gvp": "cosine"}
_NEEDED = (
    "pos_embed",
    "x_embedder.proj.weight",
    "t_embedder.mlp.0.weight",
    "y_embedder.embedding_table.weight",
    "blocks.0.adaLN_modulation.1.weight",
    "final_layer.linear.weight",
)


@dataclass(frozen=True)
class Released:
    """A published checkpoint: `tensors` are a backbone's weights in this package's convention, float32.

    `options` are those of the backbone of `family`; `channels`, `height` and `classes` describe its latents, `path`
    its noise path. `heads` are the weights that only its training used, under their published names; `args` are the
    plain settings that came with it. `step` is 0 where the file does not tell.
    """

    family: str
    options: dict[str, Any]
    channels: int
    height: int
    classes: int
    path: str
    step: int
    wrapped: bool
    tensors: Weights
    heads: Weights
    args: dict[str, Any]

    @property
    def backbone(self) -> str:
        return FAMILIES[self.family].backbone


def read_released(
    path: str | Path, *, family: str | None = None, weights: str = "ema", height: int | None = None
) -> Released:
    """The checkpoint in a published .pt, .pth or .safetensors file, converted and checked tensor by tensor.

    `family` is one of `FAMILIES`; None lets the file's heads, names and arguments decide. `weights` chooses "ema" or
    "raw" of a file that holds both. `height` moves the model to latents of another height (256 to 512 pixels: 32 to
    64) by computing its positions anew. Raises ValueError, naming the file, for anything that is not such a
    checkpoint, that might run code, that does not fit its backbone exactly, whose family cannot be told, or that
    proves another backbone or direction of time than `family` has.
    """
    refuse_unknown("weights", weights, ("ema", "raw"))
    if family is not None:
        refuse_unknown("family", family, FAMILIES)
    path = Path(path)
    content = load_file(path)
    try:
        return _understand(content, family, weights, height)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def load_file(path: Path) -> dict[str, Any]:
    """What a .pt, .pth or .safetensors file holds, its tensors on the CPU; of classes, only argparse.Namespace.

    Raises ValueError for a missing or damaged file, another kind of file, and one that asks for any other class.
    """
    refuse_unknown("the ending of a checkpoint's name", path.suffix, (".pt", ".pth", ".safetensors"))
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file as load_safetensors

            return load_safetensors(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        problem = f"asks for {asked[1]}, which could run code" if asked else "is damaged or holds more than settings"
        raise ValueError(f"{path} {problem}; it is not loaded") from error
    except Exception as error:  # a damaged file ends in almost any of them
        raise ValueError(f"{path} is damaged or not a checkpoint ({type(error).__name__})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not named tensors")
    return dict(content)


def _understand(content: Mapping[str, Any], family: str | None, weights: str, height: int | None) -> Released:
    found, wrapped = _choose(content, weights)
    named = _plain_names(found)
    heads = {name: value for name, value in named.items() if name.split(".")[0] in _HEADS}
    tensors = {name: value.float().contiguous() for name, value in named.items() if name not in heads}
    absent = [name for name in _NEEDED if name not in tensors]
    if absent:
        raise ValueError(f"it is no diffusion transformer of a known kind: it lacks {', '.join(absent)}")
    args = _arguments(content)
    family = _family(family, tensors, heads, args)
    backbone = FAMILIES[family].backbone
    options = _options(tensors, backbone)
    _, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    own_height = patch * math.isqrt(tensors["pos_embed"].shape[1])
    if height not in (None, own_height):
        tensors |= _moved(tensors, options, backbone, height)
    shape = {"channels": channels, "height": height or own_height, "classes": _classes(tensors, args)}
    check_fit(tensors, backbone, options, shape)
    return Released(
        family=family,
        options=options,
        **shape,
        path=_path(args),
        step=next((int(content[key]) for key in ("steps", "step") if isinstance(content.get(key), int)), 0),
        wrapped=wrapped,
        tensors=turn_time(tensors) if FAMILIES[family].data_at_one else tensors,
        heads=heads,
        args=args,
    )


def _choose(content: Mapping[str, Any], weights: str) -> tuple[Mapping[str, Tensor], bool]:
    """The state dict asked for, and whether it was one of a wrapped file's."""
    sets = {key: content[name] for key, name in (("ema", "ema"), ("raw", "model")) if _all_tensors(content.get(name))}
    if weights in sets:
        return sets[weights], True
    if sets:
        raise ValueError(f"it has no {weights!r} weights, only {', '.join(map(repr, sets))} ones; ask for those")
    if not _all_tensors(content):
        raise ValueError(
            f"it holds no weights under 'ema', 'model' or no name; it holds {', '.join(map(repr, content))}"
        )
    if weights == "raw":
        raise ValueError("it holds one set of weights, which count as the 'ema' ones; it has no 'raw' ones")
    return content, False


def _all_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _plain_names(tensors: Mapping[str, Tensor]) -> Weights:
    """Without the prefixes of DDP and torch.compile, and with REPA's old `decoder_blocks` after its `blocks`."""
    plain = {re.sub(r"^((module|_orig_mod)\.)+", "", name): value for name, value in tensors.items()}
    encoder = [int(name.split(".")[1]) for name in plain if name.startswith("blocks.")]
    depth = 1 + max(encoder, default=-1)
    return {
        re.sub(r"^decoder_blocks\.(\d+)", lambda match: f"blocks.{int(match[1]) + depth}", name): value
        for name, value in plain.items()
    }


def _arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    args = content.get("args", content.get("config", {}))
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    plain = (str, int, float, bool, type(None))
    return {key: value for key, value in args.items() if isinstance(value, plain)} if isinstance(args, dict) else {}


def _family(stated: str | None, tensors: Weights, heads: Weights, args: dict[str, Any]) -> str:
    """The family stated, or the one that the file proves; ValueError for neither and for two that differ in use.

    A wrong direction of time is seen in no number, so a file that proves its own is not read in the other.
    """
    evidence = _evident_family(tensors, heads, args)
    if evidence is None:
        if stated is None:
            raise ValueError(
                f"nothing in it tells which way its time runs and what it predicts; state its family: "
                f"{', '.join(FAMILIES)}"
            )
        return stated
    evident, why = evidence
    kinds = [(FAMILIES[name].backbone, FAMILIES[name].data_at_one) for name in (stated or evident, evident)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"it is a {evident} file ({why}), not {stated}")
    return stated or evident


def _evident_family(tensors: Weights, heads: Weights, args: dict[str, Any]) -> tuple[str, str] | None:
    """The family that names, heads and arguments prove, and which of them does; None if they do not."""
    marks = ("feat_rope.freqs_cos", "blocks.0.mlp.w12.weight", "blocks.0.norm1.weight")
    mark = next((name for name in marks if name in tensors), None)
    if mark:
        return "lightningdit", f"it has {mark}"
    _, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    wide = len(tensors["final_layer.linear.weight"]) == 2 * patch**2 * channels
    model = str(args.get("model", ""))
    if model.startswith("DiT-"):
        return "dit", f"its model is {model}"
    if wide and model.startswith("SiT-"):
        return "layersync" if "gt_encoder_depth" in args else "sit", f"its model is {model}, with twice the channels"
    if wide or not heads:
        return None
    head = next(iter(heads))
    if re.match(r"projectors\.\d+\.\d+\.", head):
        return "repa", f"it has {head}"
    return "self-transcendence" if head.startswith("projectors") else "sra", f"it has {head}"


def _options(tensors: Weights, backbone: str) -> dict[str, Any]:
    """The backbone's options that the names and shapes of a state dict imply."""
    width = tensors["pos_embed"].shape[-1]
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    sizes = plugin_class("backbone", backbone).sizes
    size = next((name for name, size in sizes.items() if (size.depth, size.width) == (depth, width)), None)
    if size is None:
        known = ", ".join(f"{name} ({size.depth} x {size.width})" for name, size in sizes.items())
        raise ValueError(f"{depth} blocks of width {width} are no size of {backbone}; it has {known}")
    _, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    options = {
        "size": size,
        "patch": patch,
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        "swiglu": "blocks.0.mlp.w12.weight" in tensors,
        "rope": "feat_rope.freqs_cos" in tensors,
        "rmsnorm": "blocks.0.norm1.weight" in tensors,
        "wo_shift": len(tensors["blocks.0.adaLN_modulation.1.weight"]) == 4 * width,
        "learn_sigma": len(tensors["final_layer.linear.weight"]) == 2 * patch**2 * channels,
        "checkpoint_blocks": False,
    }
    return {key: value for key, value in options.items() if key in plugin_options("backbone", backbone)}


def _classes(tensors: Weights, args: dict[str, Any]) -> int:
    rows = len(tensors["y_embedder.embedding_table.weight"])
    if rows == args.get("num_classes", 1000):
        raise ValueError(f"its label table has {rows} rows for {rows} classes: no null class, which guidance needs")
    return rows - 1


def _path(args: dict[str, Any]) -> str:
    name, prediction = str(args.get("path_type", "linear")).lower(), args.get("prediction", "v")
    if prediction not in ("v", "velocity"):
        raise ValueError(f"it predicts {prediction!r}; only velocities (and the noise of DiT) can be imported")
    refuse_unknown("its noise path", name, _PATHS)
    return _PATHS[name]


def _moved(tensors: Weights, options: Mapping[str, Any], backbone: str, height: int) -> Weights:
    """The positions of a grid of another height: the fixed embedding and, where there are any, the rotations."""
    width, patch = tensors["pos_embed"].shape[-1], options["patch"]
    if height < patch or height % patch:
        raise ValueError(f"latents of height {height} cannot be cut into patches of {patch}")
    side = height // patch
    moved = {"pos_embed": sincos_positions(side, width)[None].float()}
    if "feat_rope.freqs_cos" in tensors:
        heads = plugin_class("backbone", backbone).sizes[options["size"]].heads
        rotation = Rotation(side, width // heads).state_dict()
        moved |= {f"feat_rope.{name}": value for name, value in rotation.items()}
    return moved


def check_fit(tensors: Weights, backbone: str, options: Mapping[str, Any], shape: Mapping[str, int]) -> None:
    """Raise ValueError, with the tensors counted by kind, unless these are exactly the backbone's weights."""
    build = plugin_class("backbone", backbone)
    with torch.device("meta"):
        expected = {name: value.shape for name, value in build(**options, **shape).state_dict().items()}
    common = [name for name in expected if name in tensors]
    misfits = {
        "lacks": [name for name in expected if name not in tensors],
        "has besides": [name for name in tensors if name not in expected],
        "has in another shape": [name for name in common if tensors[name].shape != expected[name]],
    }
    reports = [f"{what} {_grouped(names)}" for what, names in misfits.items() if names]
    if reports:
        raise ValueError(
            f"it is not the {backbone} of size {options['size']!r} that it looks like: {'; '.join(reports)}"
        )


def _grouped(names: list[str]) -> str:
    """Names by kind, block numbers left out: "24 tensors: blocks.*.attn.q_norm (24), such as ..."."""
    kinds = Counter(re.sub(r"\.\d+\.", ".*.", name).rpartition(".")[0] or name for name in names)
    listed = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
    return f"{len(names)} tensors: {listed}, such as {', '.join(names[:3])}"
