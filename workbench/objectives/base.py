"""Base class of alignment objectives: the layers that they tap, and a loss per sample."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.diffusion.devices import pinned, sent


@runtime_checkable
class FeatureModel(Protocol):
    """A frozen network that returns token features by layer, such as a backbone."""

    width: int

    @property
    def null_label(self) -> int: ...

    def features(self, x_t: Tensor, t: Tensor, y: Tensor, layers: tuple[int, ...]) -> dict[int, Tensor]: ...


@dataclass(frozen=True)
class Context:
    """Context of an objective: the student's shape and path, the frozen teacher, the widths of encoder targets."""

    depth: int
    width: int
    patch: int
    channels: int
    height: int
    path: str
    targets: Mapping[str, int]  # width of the target tokens by encoder
    teacher: FeatureModel | None = None


AnyBatch = TypeVar("AnyBatch", bound="Batch")


@dataclass(frozen=True)
class Batch:
    """Noisy latents and their components; ``y`` has the null class where labels were dropped, ``labels`` does not.

    ``u`` is a uniform random number per sample for the objective's own use. ``targets`` are the tokens of pretrained
    encoders for the clean image, on the student's token grid, by encoder.
    """

    z: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]
    t: Float[Tensor, "b"]
    x_t: Float[Tensor, "b c h w"]
    v: Float[Tensor, "b c h w"]
    y: Int[Tensor, "b"]
    labels: Int[Tensor, "b"]
    u: Float[Tensor, "b"]
    targets: dict[str, Float[Tensor, "b n _"]]

    def to(self: AnyBatch, device: torch.device | str) -> AnyBatch:
        """The batch on another device; the processor does not wait for what is queued there."""
        return self._map(lambda tensor: sent(tensor, device))

    def pinned(self: AnyBatch) -> AnyBatch:
        """The batch in pinned memory, from which it is copied to a GPU."""
        return self._map(pinned)

    def rows(self: AnyBatch, index: Int[Tensor, "k"]) -> AnyBatch:
        """The samples at ``index`` only."""
        return self._map(lambda tensor: tensor[index])

    def _map(self: AnyBatch, change: Callable[[Tensor], Tensor]) -> AnyBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        for name, value in values.items():
            if isinstance(value, dict):
                changed[name] = {key: change(tensor) for key, tensor in value.items()}
        return replace(self, **changed)


@dataclass(frozen=True)
class Inputs(Batch):
    """A batch with the student's tapped features and its EMA model."""

    features: dict[int, Float[Tensor, "b n d"]]
    ema: FeatureModel


@dataclass(frozen=True)
class Alignment:
    """The alignment loss of each sample, and scalars to log (NaN if no sample counts)."""

    loss: Float[Tensor, "b"]
    metrics: dict[str, Float[Tensor, ""]]


class Objective(nn.Module):
    """Base class of objectives. A subclass sets ``taps``, ``weight`` and ``stop_step`` and defines ``loss``.

    Heads are submodules, so they are trained with the student. A teacher is in ``context``, outside the module tree, so
    it is never saved, averaged or wrapped. An option ``teacher`` requests a frozen run in ``context.teacher``, an
    option ``encoder`` requests target tokens in ``inputs.targets``.

    The subclass's module may define ``RECIPES``, dotted configuration values by recipe (or functions of the depth), and
    ``PLACEMENT``, published options (ours where none are published) by depth of the backbone. Keys (name, depth) are
    for backbones that differ from the others; the key None is for any depth. An optional function ``deciding`` selects
    the options that affect training, for the fingerprint; by default all do.
    """

    SUPPLIED: ClassVar[tuple[str, ...]] = ("context",)
    # Whether the loss of a sample depends on the others in its micro-batch, so that accumulation changes it.
    compares_samples: ClassVar[bool] = False
    taps: tuple[int, ...] = ()
    weight: float = 0.0
    stop_step: int | None = None

    def __init__(self, context: Context):
        super().__init__()
        self.context = context

    def weight_at(self, step: int) -> float:
        """Weight of the alignment loss at ``step`` (counted from 0); if it is 0, the objective is not evaluated.

        Reads ``stop_step`` at each call, as the trainer may change it during training.
        """
        return self.weight if self.stop_step is None or step < self.stop_step else 0.0

    def loss(self, inputs: Inputs) -> Alignment:
        """The alignment loss of each sample; not called while the weight is 0."""
        raise ValueError("this objective has no alignment loss")

    def check_layer(self, option: str, layer: int) -> int:
        """``layer`` if the student has it; ValueError, with the allowed range, otherwise."""
        if not 1 <= layer <= self.context.depth:
            raise ValueError(f"objective.{option} {layer} is outside 1..{self.context.depth}{self.rule()}")
        return layer

    def rule(self) -> str:
        """The paper's rule for choosing layers, appended to error messages."""
        return ""


def check_window(low: float, high: float) -> None:
    """Raise ValueError unless 0 <= low < high <= 1."""
    if not 0 <= low < high <= 1:
        raise ValueError(f"objective.window_low and window_high must satisfy 0 <= low < high <= 1; got {low}, {high}")


def windowed(
    loss: Callable[[Inputs], Float[Tensor, "b"]], inputs: Inputs, window: str, low: float, high: float
) -> Float[Tensor, "b"]:
    """Restrict a loss to low <= t <= high, as intended ("select") or as released ("scale"); "none" does nothing.

    "select" computes the loss of the samples inside the window only; the others contribute zero to the batch mean.
    "scale" reproduces the released code: every sample counts, multiplied by the fraction of the batch inside the
    window, because its (b,1,1,1) mask broadcasts against the (b,) loss.
    """
    if window == "none":
        return loss(inputs)
    inside = (inputs.t >= low) & (inputs.t <= high)
    if window == "scale":
        return loss(inputs) * inside.to(inputs.x_t.dtype).mean()
    index = inside.nonzero().squeeze(1)
    chosen = loss(inputs.rows(index))
    return torch.zeros(len(inside), dtype=chosen.dtype, device=chosen.device).index_put((index,), chosen)
