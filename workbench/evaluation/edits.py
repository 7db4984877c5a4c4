"""Edits during sampling: tokens of a layer are replaced by others, or moved towards them, as images are generated."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from workbench.backbones.base import Edit, TransformerBackbone
from workbench.config import SamplingConfig
from workbench.data.workers import Progress, device_of
from workbench.diffusion.devices import FittingBatches
from workbench.diffusion.guidance import guide
from workbench.diffusion.precision import tf32
from workbench.diffusion.randomness import normal
from workbench.diffusion.sampling import evaluation_times
from workbench.evaluation.generate import BATCH, check_sampling, decode_samples, labels_of, sample_latents
from workbench.features.grid import whole_numbers
from workbench.features.masks import token_side
from workbench.runs.held import held
from workbench.runs.models import check_null_class, load_backbone, load_run_vae
from workbench.runs.store import Run
from workbench.runs.weak import Weak, check_weak, differences

SOURCES = {
    "guided": "f_g = f_u + w (f_c - f_u)",
    "class": "the features for another class",
    "image": "the features of another image",
    "noise": "noise of the same mean and deviation",
    "zero": "zeros",
}
W = 2.0  # of "guided", if none is given
_LARGEST = float(torch.finfo(torch.float32).max)


@dataclass(frozen=True)
class FeatureEdit:
    """An edit of a run's features during sampling; `make_edit` checks and makes it.

    At every evaluation of the network with low <= t <= high, the tokens f of `layer` become f + strength (g - f). g is,
    by `source`: "guided" f_u + w (f - f_u), with f_u of the null label at the same x_t, or with `weak`
    f_weak + w (f - f_weak), with f_weak of the weak model at the same x_t and label; "class" the features of the
    same x_t with `label`; "run" those of `other` at its step `other_step`; "image" those of another sample of the same
    class, generated beside it from other noise; "noise" Gaussian noise, the same at all t, with the mean and standard
    deviation of f over tokens in each channel; "zero" 0. `tokens` are numbers in row-major order, None for all.

    Evaluations with the null label, in guided sampling, are edited too, with g for the null label; "guided" without
    `weak` and "class" leave them unchanged.
    """

    layer: int
    source: str
    tokens: tuple[int, ...] | None = None
    low: float = 0.0
    high: float = 1.0
    w: float = W
    strength: float = 1.0
    label: int | None = None
    class_name: str = ""
    other: Run | None = None
    other_step: int | None = None
    weak: Weak | None = None

    @property
    def text(self) -> str:
        """The edit in a few words."""
        against = "" if self.weak is None else f" against {self.weak.text.replace(',', ' at', 1)}"
        words = {"guided": f"f_g{against}, w = {self.w:g}", "class": f"f of {self.class_name}"}
        words |= {"image": "f of another image"}
        what = words.get(self.source, self.source)
        if self.other is not None:
            what = f"f of {self.other.name}, step {self.other_step:,}"
        parts = [f"layer {self.layer}", what]
        parts += [f"strength {self.strength:g}"] if self.strength != 1 else []
        parts += [f"{len(self.tokens)} tokens"] if self.tokens is not None else []
        parts += [f"t = {self.low:g} to {self.high:g}"] if (self.low, self.high) != (0, 1) else []
        return ", ".join(parts)

    @property
    def about(self) -> dict[str, Any]:
        """The edit as numbers and text, to be stored beside a score."""
        return {
            "layer": self.layer,
            "with": self.source if self.other is None else self.other.name,
            "with_step": self.other_step,
            "tokens": "all" if self.tokens is None else list(self.tokens),
            "t": [self.low, self.high],
            "w": self.w if self.source == "guided" else None,
            "weak": None if self.weak is None else self.weak.run.name,
            "weak_step": None if self.weak is None else self.weak.step,
            "strength": self.strength,
            "label": self.label,
        }


def make_edit(
    run: Run,
    layer: Any,
    sampling: SamplingConfig,
    *,
    with_: str | Run = "guided",
    tokens: Any = "all",
    t: Any = (0.0, 1.0),
    w: Any = None,
    strength: Any = 1.0,
    label: Any = None,
    with_step: int | None = None,
    weak: Weak | None = None,
) -> FeatureEdit:
    """Check an edit of `run` for these settings of sampling; ValueError for one that is not possible."""
    low, high = _window(t, sampling)
    for name, number in (("strength", strength), ("w", W if w is None else w)):
        if not isinstance(number, int | float) or not abs(number) <= _LARGEST:  # which NaN is not either
            raise ValueError(f"{name} is {number!r}; allowed are finite numbers up to {_LARGEST:.3g} in size")
    other = with_ if isinstance(with_, Run) else None
    if other is None and not (isinstance(with_, str) and with_ in SOURCES):
        raise ValueError(f"with_ is {with_!r}; allowed are {', '.join(map(repr, SOURCES))}, or a run")
    source = "run" if isinstance(with_, Run) else with_
    belonging = {"w": (w, "guided"), "label": (label, "class"), "with_step": (with_step, "run")}
    for name, (value, belongs) in (belonging | {"weak": (weak, "guided")}).items():
        if value is not None and belongs != source:
            of = "with_ is another run" if belongs == "run" else f"with_={belongs!r}"
            shown = value.text if isinstance(value, Weak) else repr(value)
            raise ValueError(f"{name} is {shown}, but with_ is {with_!r}; {name} is allowed if {of}")
    number = whole_numbers("layer", [layer])[0]
    if source == "guided" and weak is None:
        check_null_class(run, "it has no f_u and so no guided features: choose another with_, or a weak model")
    if weak is not None:
        check_weak(run, [], weak, [number])
    chosen = _class_number(run, label) if source == "class" else None
    side = token_side(run)
    return FeatureEdit(
        layer=number,
        source=source,
        tokens=token_numbers(tokens, side),
        low=low,
        high=high,
        w=W if w is None else float(w),
        strength=float(strength),
        label=chosen,
        class_name="" if chosen is None else str(run.latents["classes"][chosen]),
        other=other,
        other_step=None if other is None else other.checkpoint(with_step).step,
        weak=weak,
    )


def token_numbers(tokens: Any, side: int) -> tuple[int, ...] | None:
    """Numbers of the chosen tokens of a grid, in row-major order; None for "all".

    `tokens` is "all", numbers from 0, a rectangle (slice of rows, slice of columns), or a boolean array of the grid.
    Raises ValueError for a token outside the grid, or none.
    """
    grid = f"{side} x {side} tokens"
    allowed = f'"all", numbers of 0 to {side**2 - 1}, and rectangles of slices in 0:{side}, such as np.s_[0:2, 0:2]'
    if isinstance(tokens, str):
        if tokens == "all":
            return None
        why = "; a sample has no mask while it is generated" if tokens == "object" else ""
        raise ValueError(f"tokens is {tokens!r}{why}; allowed are {allowed}")
    if isinstance(tokens, tuple) and any(isinstance(part, slice) for part in tokens):
        chosen = np.zeros((side, side), dtype=bool)
        chosen[_range(tokens, 0, side, allowed), _range(tokens, 1, side, allowed)] = True
    elif str(getattr(tokens, "dtype", "")) in ("bool", "torch.bool"):
        chosen = np.asarray(tokens)
        if chosen.shape not in ((side, side), (side * side,)):
            raise ValueError(f"tokens is a boolean array of shape {chosen.shape}; the grid has {grid}")
    else:
        numbers = whole_numbers("tokens", tokens)
        wrong = [number for number in numbers if not 0 <= number < side * side]
        if wrong:
            raise ValueError(f"tokens has {wrong[0]}, but the grid has {grid}; allowed are {allowed}")
        chosen = np.isin(np.arange(side * side), numbers)
    if not chosen.any():
        raise ValueError(f"tokens selects no token; allowed are {allowed}")
    return tuple(np.flatnonzero(chosen).tolist())


def _range(tokens: tuple, axis: int, side: int, allowed: str) -> slice:
    if len(tokens) != 2 or not isinstance(tokens[axis], slice):
        raise ValueError(f"tokens is {tokens}; allowed are {allowed}")
    part = tokens[axis]
    ends = [part.start or 0, side if part.stop is None else part.stop]
    whole = all(isinstance(end, int) for end in ends) and part.step in (None, 1)
    if not whole or not 0 <= ends[0] < ends[1] <= side:
        raise ValueError(f"tokens has {('rows', 'columns')[axis]} {part}; allowed are {allowed}")
    return slice(*ends)


def _window(t: Any, sampling: SamplingConfig) -> tuple[float, float]:
    try:
        low, high = map(float, t)
    except (TypeError, ValueError):
        raise ValueError(f"t is {t!r}; allowed is a pair (low, high) with 0 <= low <= high <= 1") from None
    if not 0 <= low <= high <= 1:
        raise ValueError(f"t is ({low:g}, {high:g}); allowed is a pair (low, high) with 0 <= low <= high <= 1")
    times = evaluation_times(sampling.sampler, sampling.steps, sampling.last_step, sampling.shift)
    if not any(low <= time <= high for time in times):
        nearest = sorted(sorted(times, key=lambda time: abs(time - (low + high) / 2))[:2])
        near = " and ".join(f"{time:.4g}" for time in nearest)
        raise ValueError(
            f"t is ({low:g}, {high:g}), where {sampling.sampler} with {sampling.steps} steps does not evaluate the "
            f"model; the nearest t are {near}"
        )
    return low, high


def _class_number(run: Run, label: Any) -> int:
    classes = [str(name) for name in run.latents["classes"]]
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if isinstance(label, int | np.integer) and 0 <= label < len(classes):
        return int(label)
    names = ", ".join(classes) if len(classes) <= 20 else f"{', '.join(classes[:3])}, ..."
    raise ValueError(f"label is {label!r}; allowed are 0 to {len(classes) - 1}, or a name: {names}")


def sample_edited(
    run: Run, step: int, sampling: SamplingConfig, edit: FeatureEdit, progress: Progress | None = None
) -> UInt8[Tensor, "n c x y"]:
    """Images of `sampling.count` samples with an edit, from the same noise as those of `generate`.

    Raises ValueError as `generate`, for a backbone that takes no edits, another run that does not fit, a layer that
    does not exist, and an edit that makes values that are not finite.
    """
    check_sampling(run, sampling)
    device = device_of(0)
    with held(run, step) as kept:
        backbone, vae = load_backbone(kept, step, sampling.weights).to(device), load_run_vae(kept, device)
    check_takes_edits(backbone, edit.layer, run.config.backbone.name)
    beside = edit.weak or (None if edit.other is None else Weak(edit.other, edit.other_step or 0))
    other = None if beside is None else _other_backbone(run, beside, edit.layer, sampling).to(device)
    labels = labels_of(sampling, len(run.latents["classes"]))
    which, cause = f"of run {run.name} with the edit ({edit.text})", "choose a smaller w, strength or window of t"

    def images(part: slice) -> Tensor:
        rows = np.arange(part.start, part.stop)
        count, given = len(rows), labels[rows]
        if edit.source == "image":  # the other images are generated in the same batch, after these
            rows, given = np.concatenate([rows, rows + sampling.count]), given.repeat(2)
        velocity = EditedVelocity(backbone, edit, len(rows), _noise(edit, backbone, sampling.seed, rows), other)
        z = sample_latents(run, sampling, backbone, velocity, rows, given, which, cause)[:count]
        return decode_samples(vae, z, rows[:count], which, cause)

    parts = []
    with tf32(run.config.training.tf32):
        for part, made in FittingBatches(BATCH)(images, sampling.count):
            parts.append(made)
            if progress:
                progress(part.stop, sampling.count)
    return torch.cat(parts)


@torch.no_grad()
def check_takes_edits(backbone: TransformerBackbone, layer: int, name: str) -> None:
    """Raise ValueError for a layer that does not exist, or a backbone that ignores edits of its tokens.

    Backbones of other packages may walk over their blocks themselves.
    """
    if not 0 <= layer <= backbone.depth:
        raise ValueError(f"layer is {layer}; allowed are 0 (the patch embedding) to {backbone.depth}, the last block")
    parameter = next(backbone.parameters())
    x_t = torch.ones(1, backbone.channels, backbone.height, backbone.height).to(parameter)
    try:
        y = torch.zeros(1, dtype=torch.int64, device=parameter.device)
        zeros: dict[int, Edit] = {layer: torch.zeros_like}
        tapped = backbone.forward_tapped(x_t, torch.ones(1).to(parameter), y, (layer,), edits=zeros)
        taken = not tapped.features[layer].any()
    except TypeError:  # an unknown argument
        taken = False
    if not taken:
        raise ValueError(
            f"backbone {name} takes no edits: its forward_tapped or _walk lacks the argument `edits`, or ignores it"
        )


def _other_backbone(run: Run, other: Weak, layer: int, sampling: SamplingConfig) -> TransformerBackbone:
    """The backbone of another run or step; ValueError if its features cannot stand in those of `run`."""
    different = differences(run, other.run, [layer])
    if different:
        raise ValueError(
            f"the features of run {other.run.name} cannot replace those of {run.name}: it has {', '.join(different)}"
        )
    if sampling.guidance_scale != 1:
        check_null_class(other.run, "its features cannot replace those of guided sampling")
    return load_backbone(other.run, other.step, sampling.weights)


def _noise(edit: FeatureEdit, backbone: TransformerBackbone, seed: int, rows: np.ndarray) -> Tensor | None:
    if edit.source != "noise":
        return None
    device = next(backbone.parameters()).device
    return normal(seed, "edit-noise", rows, (backbone.tokens, backbone.width)).to(device)


@dataclass(frozen=True, eq=False)
class EditedVelocity:
    """The velocity of a backbone with an edit: a function of x_t, t and y like the backbone.

    `rows` is the number of samples; in guided sampling they are there twice, with the labels and then with the null
    label. With the source "image" they are [edited | other images]. `noise` is standard normal noise of each sample's
    tokens, for the source "noise", and `other` the backbone of the other run or of the weak model.
    """

    backbone: TransformerBackbone
    edit: FeatureEdit
    rows: int
    noise: Float[Tensor, "b n d"] | None = None
    other: TransformerBackbone | None = None

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Float[Tensor, "b"], y: Int[Tensor, "b"]
    ) -> Float[Tensor, "b c h w"]:
        edit = self.edit
        low, high = (torch.tensor(end, dtype=t.dtype) for end in (edit.low, edit.high))  # rounded as t is
        if not low <= t[0].cpu() <= high:
            return self.backbone(x_t, t, y)
        return self.backbone.forward_tapped(x_t, t, y, (), edits={edit.layer: self._at(x_t, t, y)}).v

    def _at(self, x_t: Tensor, t: Tensor, y: Tensor) -> Edit:
        def edited(tokens: Tensor) -> Tensor:
            moved = torch.lerp(tokens, self._source(tokens, x_t, t, y), self.edit.strength)
            if self.edit.tokens is not None:
                chosen = torch.zeros(tokens.shape[1], dtype=torch.bool, device=tokens.device)
                chosen[list(self.edit.tokens)] = True
                moved = torch.where(chosen[:, None], moved, tokens)
            if not moved.isfinite().all():
                raise ValueError(
                    f"the edit ({self.edit.text}) makes features that are not finite at t = {float(t[0]):.4g}; "
                    f"choose a smaller w or strength"
                )
            return moved

        return edited

    def _source(self, tokens: Tensor, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """What replaces the tokens, for every row of the batch."""
        if self.edit.source == "zero":
            return torch.zeros_like(tokens)
        if self.edit.source == "noise":
            assert self.noise is not None
            noise = self.noise.repeat(len(tokens) // len(self.noise), 1, 1).to(tokens.dtype)
            deviation = tokens.std(dim=1, correction=0, keepdim=True)
            return tokens.mean(dim=1, keepdim=True) + deviation * noise
        if self.edit.source == "image":
            return self._of_other_images(tokens)
        if self.edit.source == "run" or self.edit.weak is not None:
            assert self.other is not None
            f = self._features(self.other, x_t, t, y)
            return f if self.edit.weak is None else guide(f, tokens, self.edit.w)
        return self._for_another_label(tokens, x_t, t, y)

    def _of_other_images(self, tokens: Tensor) -> Tensor:
        half = self.rows // 2
        blocks = tokens.clone().unflatten(0, (-1, 2, half))
        blocks[:, 0] = blocks[:, 1]
        return blocks.flatten(0, 2)

    def _for_another_label(self, tokens: Tensor, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """f_g, or f of another class, where the label is not the null label."""
        edit, source = self.edit, tokens.clone()
        labelled = torch.ones_like(y, dtype=torch.bool)
        if self.backbone.null_row:
            labelled = y != self.backbone.null_label
        given = self.backbone.null_label if edit.source == "guided" else edit.label
        assert given is not None
        f = self._features(self.backbone, x_t[labelled], t[labelled], torch.full_like(y[labelled], given))
        source[labelled] = guide(f, tokens[labelled], edit.w) if edit.source == "guided" else f
        return source

    def _features(self, backbone: TransformerBackbone, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return backbone.features(x_t, t, y, (self.edit.layer,))[self.edit.layer]
