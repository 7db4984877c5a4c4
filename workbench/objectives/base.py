"""What every alignment objective is: the student's layers it needs, and a loss for each sample."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@runtime_checkable
class FeatureModel(Protocol):
    """A frozen network that gives token features by layer, as the backbones do."""

    width: int
    null_label: int

    def features(self, x_t: Tensor, t: Tensor, y: Tensor, layers: tuple[int, ...]) -> dict[int, Tensor]: ...


@dataclass(frozen=True)
class Context:
    """What an objective is built for: the student's shape, and the teacher it was handed, frozen."""

    depth: int
    width: int
    patch: int
    channels: int
    height: int
    teacher: FeatureModel | None = None


@dataclass(frozen=True)
class Batch:
    """Noised latents and what they are made of; ``y`` has the null class where labels were dropped, ``labels`` not."""

    z: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]
    t: Float[Tensor, "b"]
    x_t: Float[Tensor, "b c h w"]
    v: Float[Tensor, "b c h w"]
    y: Int[Tensor, "b"]
    labels: Int[Tensor, "b"]

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(**{name: tensor.to(device) for name, tensor in self.__dict__.items()})


@dataclass(frozen=True)
class Inputs(Batch):
    """A batch as the student saw it, with the features it was tapped for."""

    features: dict[int, Float[Tensor, "b n d"]]

    def rows(self, index: Int[Tensor, "k"]) -> "Inputs":
        """The samples at ``index`` only."""
        chosen = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "features"}
        return replace(self, **chosen, features={layer: f[index] for layer, f in self.features.items()})


@dataclass(frozen=True)
class Alignment:
    """The alignment loss of each sample, and scalars worth logging (NaN where no sample counted)."""

    loss: Float[Tensor, "b"]
    metrics: dict[str, Float[Tensor, ""]]


class Objective(nn.Module):
    """Base of the objectives. A subclass sets ``taps``, ``weight`` and ``stop_step`` and defines ``loss``.

    Heads are submodules, so they are trained with the student; a teacher stays in ``context``, outside the module
    tree, so it is never saved, averaged or wrapped. ``RECIPES`` of the subclass's module maps a recipe's name to
    dotted configuration values.
    """

    SUPPLIED: ClassVar[tuple[str, ...]] = ("context",)
    taps: tuple[int, ...] = ()
    weight: float = 0.0
    stop_step: int | None = None

    def __init__(self, context: Context):
        super().__init__()
        self.context = context

    def weight_at(self, step: int) -> float:
        """The factor of the alignment loss at ``step`` (counted from 0); at 0 nothing of the objective runs."""
        return self.weight if self.stop_step is None or step < self.stop_step else 0.0

    def loss(self, inputs: Inputs) -> Alignment:
        """The alignment loss of each sample; not called while the weight is 0."""
        raise ValueError("this objective has no alignment loss")

    def check_layer(self, option: str, layer: int) -> int:
        """``layer`` if the student has it; ValueError that gives the range and the paper's rule otherwise."""
        depth = self.context.depth
        if not 1 <= layer <= depth:
            raise ValueError(
                f"objective.{option} {layer} is outside 1..{depth}; the paper's rule for depth {depth} is "
                f"layer {depth // 2} guided by layer {2 * depth // 3}"
            )
        return layer


def check_window(low: float, high: float) -> None:
    """ValueError unless 0 <= low < high <= 1."""
    if not 0 <= low < high <= 1:
        raise ValueError(f"objective.window_low and window_high must satisfy 0 <= low < high <= 1; got {low}, {high}")


def windowed(
    loss: Callable[[Inputs], Float[Tensor, "b"]], inputs: Inputs, window: str, low: float, high: float
) -> Float[Tensor, "b"]:
    """Restrict a loss to low <= t <= high, as intended ("select") or as released ("scale"); "none" leaves it.

    "select" computes the loss of the samples inside only; the others contribute zero to the batch mean. "scale"
    is what the released code does: every sample counts, times the share of the batch that lies inside, because
    its (b,1,1,1) mask broadcasts against the (b,) loss.
    """
    if window == "none":
        return loss(inputs)
    inside = (inputs.t >= low) & (inputs.t <= high)
    if window == "scale":
        return loss(inputs) * inside.to(inputs.x_t.dtype).mean()
    index = inside.nonzero().squeeze(1)
    chosen = loss(inputs.rows(index))
    return torch.zeros(len(inside), dtype=chosen.dtype, device=chosen.device).index_put((index,), chosen)
