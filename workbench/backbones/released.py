"""Read published checkpoints of diffusion transformers into weights of this package's backbones.

The architecture is inferred from the tensors; code in a file is never executed.
"""

import argparse
import math
import mmap
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.backbones.conversion import FAMILIES, Weights, turn_time
from workbench.backbones.layers import sincos_positions
from workbench.backbones.lightningdit import Rotation, check_rotation
from workbench.config import backbone_sizes, plugin_class, plugin_options, refuse_unknown
from workbench.files import WEIGHT_ENDINGS

_HEADS = ("projectors", "projectors_final", "ap_head")  # REPA, Self-Transcendence and SRA
_PATHS = {"linear": "linear", "cosine": "cosine", "cos": "cosine", "gvp": "cosine"}
_NEEDED = {  # required tensors and their number of axes
    "pos_embed": 3,
    "x_embedder.proj.weight": 4,
    "t_embedder.mlp.0.weight": 2,
    "y_embedder.embedding_table.weight": 2,
    "blocks.0.adaLN_modulation.1.weight": 2,
    "final_layer.linear.weight": 2,
}
_NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NAME = re.compile(r"[A-Za-z0-9_][\w.\-]{0,199}", re.ASCII)
MOST_CLASSES = 1_000_000  # a name is stored for each class
MOST_SIDE = 256  # tokens per side: attention is between all pairs of 65,536 tokens
_MOST_STRUCTURE = 32_000_000  # bytes of a file's pickle without its tensor data; published files have less than 2 MB
_TEXT = 1000  # maximum length of a setting that is kept


@dataclass(frozen=True)
class Released:
    """A published checkpoint; `tensors` are the backbone's weights in this package's convention, float32.

    `options` are the backbone's options; `channels`, `height` and `classes` describe its latents, `path` is its noise
    path. `null_row` is whether the label table has a null row, which guidance needs. `heads` are weights that are only
    used in training, with their published names. `args` are the plain settings in the file. `step` is 0 if the file
    does not contain it.
    """

    family: str
    options: dict[str, Any]
    channels: int
    height: int
    classes: int
    null_row: bool
    path: str
    step: int
    wrapped: bool
    tensors: Weights
    heads: Weights
    args: dict[str, Any]

    @property
    def backbone(self) -> str:
        return FAMILIES[self.family].backbone

    @property
    def label_table(self) -> str:
        """Interpretation of the label table, as text."""
        null = "and a null row" if self.null_row else "and no null row: it cannot be guided"
        return f"{self.classes + self.null_row} rows read as {self.classes} classes {null}"


def read_released(
    path: str | Path,
    *,
    family: str | None = None,
    weights: str = "ema",
    height: int | None = None,
    classes: int | None = None,
) -> Released:
    """Read a published .pt, .pth or .safetensors checkpoint, converting and checking every tensor.

    `family` is one of `FAMILIES`; None infers it from the file's heads, names and arguments. `weights` selects "ema" or
    "raw" in a file with both. `height` adapts the model to another latent height (256 to 512 pixels: 32 to 64) by
    recomputing its positions. `classes` is the number of real classes, for a file that does not contain it, as the
    label table may have an extra null row; 1001 rows are assumed to be ImageNet's 1000 classes and a null row.

    Raises ValueError, naming the file, for anything that is not such a checkpoint, could execute code, does not fit its
    backbone exactly, has non-finite numbers or an unknown family or number of classes, or contradicts the given family
    (backbone, time direction) or number of classes.
    """
    refuse_unknown("weights", weights, ("ema", "raw"))
    if family is not None:
        refuse_unknown("family", family, FAMILIES)
    if classes is not None and not 1 <= classes <= MOST_CLASSES:
        raise ValueError(f"classes must be 1 to {MOST_CLASSES:,}; got {classes:,}")
    path = Path(path)
    content = load_file(path)
    try:
        found, wrapped = _choose(content, weights)
        named = _plain_names(found)
        _check_numbers(named, path.stat().st_size)
        check_rotation({name: value for name, value in named.items() if name.startswith("feat_rope.")})
        settings = {"args": _metadata(path)} if path.suffix == ".safetensors" else content
        return _understand(_owned(named), wrapped, settings, family, height, classes)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    except (TypeError, AttributeError, RuntimeError) as error:  # objects in a pickle may have any attributes
        problem = " ".join(str(error).split())[:200]
        raise ValueError(f"{path.name}: its content is not usable as weights ({problem})") from error


def load_file(path: Path) -> dict[Any, Any]:
    """Load a .pt, .pth or .safetensors file onto the CPU; argparse.Namespace is the only class allowed in it.

    Raises ValueError for a missing, unreadable or damaged file, another kind of file, a file that needs any other
    class, and a file that would unpack to more than its own size.
    """
    refuse_unknown("checkpoint file ending", path.suffix, WEIGHT_ENDINGS)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file as load_safetensors

            return load_safetensors(path)
        _check_packing(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        if isinstance(content, dict):
            return dict(content)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        problem = f"needs {asked[1]}, which could execute code" if asked else "is damaged or has more than settings"
        raise ValueError(f"{path} {problem}; it is not loaded") from error
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except _Refused:
        raise
    except Exception as error:  # a damaged file may raise almost any error
        raise ValueError(f"{path} is damaged or not a checkpoint ({type(error).__name__})") from error
    raise ValueError(f"{path} has a {type(content).__name__}, not named tensors")


def _metadata(path: Path) -> dict[str, Any]:
    """Settings in the metadata of a .safetensors file: the number of classes, which exported files contain."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        count = (file.metadata() or {}).get("num_classes", "")
    return {"num_classes": int(count)} if re.fullmatch(r"[0-9]{1,9}", count) else {}


class _Refused(ValueError):
    """A file that is refused before it is loaded."""


def _check_packing(path: Path) -> None:
    """Raise ValueError for content that `torch.save` never writes and that may unpack to any size."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # Members are memory-mapped, which is impossible for compressed ones.
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise _Refused(f"{path} has compressed members; torch.save stores them uncompressed")
            asked, there = sum(member.file_size for member in members), path.stat().st_size
            if asked > there:
                raise _Refused(f"{path} would unpack to {asked:,} bytes and has {there:,}")
            structures = [member for member in members if member.filename.endswith(".pkl")]
            size = sum(member.file_size for member in structures)
            if size > _MOST_STRUCTURE:
                raise _Refused(f"{path} has {size:,} bytes beside its tensor data; the limit is {_MOST_STRUCTURE:,}")
            hungry = any(_is_hungry(archive.read(member)) for member in structures)
    else:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            hungry = _is_hungry(content)
    if hungry:
        raise _Refused(f"{path} allocates memory beside its tensors, which files of torch.save do not")


def _is_hungry(structure: bytes | mmap.mmap) -> bool:
    """Whether a pickle uses functions that PyTorch's restricted reader allows and that can allocate gigabytes."""
    return any(structure.find(name) >= 0 for name in (b"bytearray", b"_codecs"))


def _check_numbers(named: Mapping[str, Tensor], room: int) -> None:
    """Raise ValueError for a tensor that is not dense, real and finite, or tensors of more than `room` bytes."""
    asked, broken = 0, {}
    for name, value in named.items():
        problem = _unusual(value)
        if problem:
            kinds = ", ".join(str(kind).removeprefix("torch.") for kind in _NUMBERS)
            raise ValueError(f"{name} {problem}; weights are dense tensors of {kinds}")
        asked += value.numel() * value.element_size()
        if asked > room:  # many views of the same data
            raise ValueError(f"up to {name} its tensors take {asked:,} bytes, and the whole file has {room:,}")
    for name, value in named.items():
        wrong = value.numel() - int(value.detach().float().isfinite().sum())
        if wrong:
            broken[name] = f"{wrong:,} of the {value.numel():,} numbers of {name} are NaN or infinite in float32"
    if broken:
        more = f", and some of {len(broken) - 1} more tensors" if len(broken) > 1 else ""
        raise ValueError(f"{next(iter(broken.values()))}{more}")


def _unusual(value: Tensor) -> str | None:
    """Reason why a tensor is not a dense tensor of real numbers, or None."""
    if type(value) not in (Tensor, torch.nn.Parameter):
        return f"is a {type(value).__name__}"
    if value.is_meta:
        return "has a shape but no numbers (it is a meta tensor)"
    if value.is_nested or value.layout is not torch.strided:
        return f"is {'nested' if value.is_nested else f'sparse ({value.layout})'}"
    if value.is_quantized:
        return f"is quantised ({value.dtype})"
    if value.is_complex():
        return f"has complex numbers ({value.dtype})"
    if value.dtype not in _NUMBERS:
        return f"has numbers of {value.dtype}"
    return None


def _owned(named: Mapping[str, Tensor]) -> Weights:
    """Contiguous tensors without shared memory, those of the backbone in float32."""
    taken, owned = set(), {}
    for name, value in named.items():
        own = value.detach().contiguous() if _is_head(name) else value.detach().float().contiguous()
        pointer = own.untyped_storage().data_ptr()
        owned[name] = own.clone() if pointer in taken else own
        taken.add(pointer)
    return owned


def _is_head(name: str) -> bool:
    return name.split(".")[0] in _HEADS


def _understand(
    named: Weights,
    wrapped: bool,
    settings: Mapping[Any, Any],
    family: str | None,
    height: int | None,
    classes: int | None,
) -> Released:
    heads = {name: value for name, value in named.items() if _is_head(name)}
    tensors = {name: value for name, value in named.items() if name not in heads}
    absent = [name for name in _NEEDED if name not in tensors]
    if absent:
        raise ValueError(f"it is not a diffusion transformer of a known kind: it lacks {', '.join(absent)}")
    for name, axes in _NEEDED.items():
        if tensors[name].ndim != axes or 0 in tensors[name].shape:
            raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}; it must have {axes} axes, none empty")
    args = _arguments(settings)
    family = _family(family, tensors, heads, args)
    backbone = FAMILIES[family].backbone
    options = _options(tensors, backbone)
    _, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    own_height = patch * math.isqrt(tensors["pos_embed"].shape[1])
    _check_side(own_height, patch)
    if height not in (None, own_height):
        tensors |= _moved(tensors, options, backbone, height)
    shape = {"channels": channels, "height": height or own_height}
    rows = len(tensors["y_embedder.embedding_table.weight"])
    check_fit(tensors, backbone, options, {**shape, "classes": rows, "null_row": False})
    classes, null_row = _classes(rows, args, classes)
    return Released(
        family=family,
        options=options,
        **shape,
        classes=classes,
        null_row=null_row,
        path=_path(args),
        step=_step(settings),
        wrapped=wrapped,
        tensors=turn_time(tensors) if FAMILIES[family].data_at_one else tensors,
        heads=heads,
        args=args,
    )


def _choose(content: Mapping[Any, Any], weights: str) -> tuple[Mapping[Any, Tensor], bool]:
    """The requested state dict, and whether the file is wrapped."""
    sets = {key: content[name] for key, name in (("ema", "ema"), ("raw", "model")) if _all_tensors(content.get(name))}
    if weights in sets:
        return sets[weights], True
    if sets:
        raise ValueError(f"it has no {weights!r} weights, only {', '.join(map(repr, sets))} weights; request those")
    if not _all_tensors(content):
        raise ValueError(f"it has no weights under 'ema', 'model' or at the top level; it has {_listed(content)}")
    if weights == "raw":
        raise ValueError("it has one set of weights, which is treated as 'ema'; it has no 'raw' weights")
    return content, False


def _listed(keys: Iterable[Any]) -> str:
    """The first keys of a file, as text; they may be of any length and type."""
    keys = list(keys)
    shown = [repr(key[:40]) if isinstance(key, str) else f"a key of type {type(key).__name__}" for key in keys[:6]]
    return ", ".join([*shown, *([f"and {len(keys) - 6:,} more"] if len(keys) > 6 else [])]) or "nothing"


def _all_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _plain_names(tensors: Mapping[Any, Tensor]) -> Weights:
    """Remove the prefixes of DDP and torch.compile, and append REPA's old `decoder_blocks` to its `blocks`.

    Raises ValueError for keys that are not names of weights, and if two keys become the same name.
    """
    for name in tensors:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"its weights are not named: it has {_listed([name])}")
    plain = {re.sub(r"^((module|_orig_mod)\.)+", "", name): value for name, value in tensors.items()}
    depth = 1 + max(_blocks(plain), default=-1)
    moved = {
        re.sub(r"^decoder_blocks\.(\d{1,6})(?=\.)", lambda match: f"blocks.{int(match[1]) + depth}", name): value
        for name, value in plain.items()
    }
    if len(moved) < len(tensors):
        raise ValueError(f"{len(tensors) - len(moved)} of its weights have the same name as another one")
    return moved


def _blocks(names: Iterable[str]) -> list[int]:
    """Block numbers in the names of weights."""
    matches = (re.match(r"blocks\.(\d{1,6})\.", name) for name in names)
    return [int(match[1]) for match in matches if match]


def _arguments(content: Mapping[Any, Any]) -> dict[str, Any]:
    """The settings in a file that are plain values, without long strings."""
    args = content.get("args", content.get("config", {}))
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    plain = (str, int, float, bool, type(None))
    named = {k: v for k, v in args.items() if isinstance(k, str)} if isinstance(args, dict) else {}
    return {
        key: value
        for key, value in named.items()
        if isinstance(value, plain) and len(key) <= _TEXT and len(repr(value)) <= _TEXT and value == value
    }


def _step(content: Mapping[Any, Any]) -> int:
    """The training step in a file, or 0."""
    steps = [content[key] for key in ("steps", "step") if type(content.get(key)) is int]
    if steps and not 0 <= steps[0] < 10**12:
        raise ValueError(f"its step is {str(steps[0])[:40]}; allowed are 0 to 999,999,999,999")
    return steps[0] if steps else 0


def _family(stated: str | None, tensors: Weights, heads: Weights, args: dict[str, Any]) -> str:
    """The given family, or the one inferred from the file; ValueError if there is neither or they are incompatible.

    A wrong time direction cannot be detected later, so a contradiction is always an error.
    """
    evidence = _evident_family(tensors, heads, args)
    if evidence is None:
        if stated is None:
            raise ValueError(
                f"its time direction and prediction target cannot be inferred; give its family: {', '.join(FAMILIES)}"
            )
        return stated
    evident, why = evidence
    kinds = [(FAMILIES[name].backbone, FAMILIES[name].data_at_one) for name in (stated or evident, evident)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"it is a {evident} file ({why}), not {stated}")
    return stated or evident


def _evident_family(tensors: Weights, heads: Weights, args: dict[str, Any]) -> tuple[str, str] | None:
    """The family inferred from names, heads and arguments, with the evidence; None if it cannot be inferred."""
    typical = ("feat_rope.freqs_cos", "blocks.0.mlp.w12.weight", "blocks.0.norm1.weight")
    evidence = next((name for name in typical if name in tensors), None)
    if evidence:
        return "lightningdit", f"it has {evidence}"
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
    """The backbone's options, inferred from the names and shapes of a state dict."""
    width = tensors["pos_embed"].shape[-1]
    depth = 1 + max(_blocks(tensors))
    sizes = backbone_sizes(backbone)
    size = next((name for name, size in sizes.items() if (size.depth, size.width) == (depth, width)), None)
    if size is None:
        known = ", ".join(f"{name} ({size.depth} x {size.width})" for name, size in sizes.items())
        raise ValueError(f"{depth} blocks of width {width} are not a size of {backbone}; it has {known}")
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


def _classes(rows: int, args: Mapping[str, Any], stated: int | None) -> tuple[int, bool]:
    """Number of classes in a label table, and whether it has a null row; ValueError if that cannot be determined.

    DiT's code adds the null row only if labels are dropped in training, so the number of rows is ambiguous. A wrong
    guess cannot be detected later: the last class would be used as the null label.
    """
    if rows > MOST_CLASSES + 1:
        raise ValueError(f"its label table has {rows:,} rows; at most {MOST_CLASSES + 1:,} are supported")
    recorded = args.get("num_classes")
    recorded = recorded if type(recorded) is int and recorded > 0 else None
    if None not in (stated, recorded) and stated != recorded:
        raise ValueError(f"it was trained on {recorded} classes according to its settings, not on {stated}")
    known = stated or recorded or (1000 if rows == 1001 else None)
    if known is None:
        raise ValueError(
            f"its label table has {rows} rows, which may be {rows - 1} classes and a null row or {rows} classes "
            f"without one; give the number of classes (--classes {rows - 1} or --classes {rows})"
        )
    if rows not in (known, known + 1):
        raise ValueError(
            f"its label table has {rows} rows; {known} classes have {known}, or {known + 1} with a null row"
        )
    return known, rows == known + 1


def _path(args: dict[str, Any]) -> str:
    name, prediction = str(args.get("path_type", "linear")).lower(), args.get("prediction", "v")
    if prediction not in ("v", "velocity"):
        raise ValueError(f"it predicts {prediction!r}; only velocity models (and DiT) can be imported")
    refuse_unknown("its noise path", name, _PATHS)
    return _PATHS[name]


def _moved(tensors: Weights, options: Mapping[str, Any], backbone: str, height: int) -> Weights:
    """Positions for a grid of another height: the fixed embedding and rotary positions, if the model has them."""
    width, patch = tensors["pos_embed"].shape[-1], options["patch"]
    if height < patch or height % patch:
        raise ValueError(f"latents of height {height} cannot be divided into patches of {patch}")
    _check_side(height, patch)
    side = height // patch
    moved = {"pos_embed": sincos_positions(side, width)[None].float()}
    if "feat_rope.freqs_cos" in tensors:
        heads = backbone_sizes(backbone)[options["size"]].heads
        rotation = Rotation(side, width // heads).state_dict()
        moved |= {f"feat_rope.{name}": value for name, value in rotation.items()}
    return moved


def _check_side(height: int, patch: int) -> None:
    side = height // patch
    if not 1 <= side <= MOST_SIDE:
        raise ValueError(
            f"latents of height {height:,} are {side:,} x {side:,} tokens with patch size {patch}; at most "
            f"{MOST_SIDE} x {MOST_SIDE} are supported"
        )


def check_fit(tensors: Weights, backbone: str, options: Mapping[str, Any], shape: Mapping[str, int]) -> None:
    """Raise ValueError, listing the differences by kind, unless these are exactly the backbone's weights."""
    build = plugin_class("backbone", backbone)
    with torch.device("meta"):
        expected = {name: value.shape for name, value in build(**options, **shape).state_dict().items()}
    common = [name for name in expected if name in tensors]
    misfits = {
        "lacks": [name for name in expected if name not in tensors],
        "also has": [name for name in tensors if name not in expected],
        "has with another shape": [name for name in common if tensors[name].shape != expected[name]],
    }
    reports = [f"{what} {_grouped(names)}" for what, names in misfits.items() if names]
    if reports:
        raise ValueError(f"it does not match the {backbone} of size {options['size']!r}: {'; '.join(reports)}")


def _grouped(names: list[str]) -> str:
    """Names grouped by kind, without block numbers: "24 tensors: blocks.*.attn.q_norm (24), such as ..."."""
    kinds = Counter(re.sub(r"\.\d+\.", ".*.", name).rpartition(".")[0] or name for name in names)
    listed = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
    return f"{len(names)} tensors: {listed}, such as {', '.join(names[:3])}"
