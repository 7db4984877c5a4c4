"""What every alignment objective is: the student's layers it needs, and a loss for each sample."""

from collections.abc import Callable, Mapping
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
    """What an objective is built for: the student's shape and path, its frozen teacher, its encoders' widths."""

    depth: int
    width: int
    patch: int
    channels: int
    height: int
    path: str
    targets: Mapping[str, int]  # width of the target tokens by encoder
    teacher: FeatureModel | None = None


@dataclass(frozen=True)
class Batch:
    """Noised latents and what they are made of; ``y`` has the null class where labels were dropped, ``labels`` not.

    ``u`` is one uniform number a sample for the objective's own chance, ``targets`` the tokens that outside encoders
    give for the clean image, on the student's token grid, by encoder.
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

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def rows(self, index: Int[Tensor, "k"]) -> "Batch":
        """The samples at ``index`` only."""
        return self._map(lambda tensor: tensor[index])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        groups = {name: value for name, value in values.items() if isinstance(value, dict)}
        return replace(self, **tensors, **{n: {k: change(v) for k, v in g.items()} for n, g in groups.items()})


@dataclass(frozen=True)
class Inputs(Batch):
    """A batch as the student saw it, with the features it was tapped for and the average of its past weights."""

    features: dict[int, Float[Tensor, "b n d"]]
    ema: FeatureModel


@dataclass(frozen=True)
class Alignment:
    """The alignment loss of each sample, and scalars worth logging (NaN where no sample counted)."""

    loss: Float[Tensor, "b"]
    metrics: dict[str, Float[Tensor, ""]]


class Objective(nn.Module):
    """Base of the objectives. A subclass sets ``taps``, ``weight`` and ``stop_step`` and defines ``loss``.

    Heads are submodules, so they are trained with the student; a teacher stays in ``context``, outside the module
    tree, so it is never saved, averaged or wrapped. An option ``teacher`` asks for a frozen run in
    ``context.teacher``, an option ``encoder`` for target tokens in ``inputs.targets``.

    The subclass's module may list ``RECIPES``, dotted configuration values by recipe (a function of the depth where
    they depend on it), and ``PLACEMENT``: what is published, or ours where nothing is, by the depth of the backbone;
    rows (name, depth) are of a backbone that differs from the others, a row None is of any depth. A function
    ``deciding`` of the options gives those that decide what is trained, for the fingerprint; all without it.
    """

    SUPPLIED: ClassVar[tuple[str, ...]] = ("context",)
    # Whether the loss of a sample depends on the others of its micro-batch, so that accumulation changes it.
    compares_samples: ClassVar[bool] = False
    taps: tuple[int, ...] = ()
    weight: float = 0.0
    stop_step: int | None = None

    def __init__(self, context: Context):
        super().__init__()
        self.context = context

    def weight_at(self, step: int) -> float:
        """The factor of the alignment loss at ``step`` (counted from 0); at 0 nothing of the objective runs.

        It reads ``stop_step`` at each call: the trainer sets that to the one in force, which may change as it trains.
        """
        return self.weight if self.stop_step is None or step < self.stop_step else 0.0

    def loss(self, inputs: Inputs) -> Alignment:
        """The alignment loss of each sample; not called while the weight is 0."""
        raise ValueError("this objective has no alignment loss")

    def check_layer(self, option: str, layer: int) -> int:
        """``layer`` if the student has it; ValueError that gives the range otherwise."""
        if not 1 <= layer <= self.context.depth:
            raise ValueError(f"objective.{option} {layer} is outside 1..{self.context.depth}{self.rule()}")
        return layer

    def rule(self) -> str:
        """What the method's paper says about layers, to end an error with."""
        return ""


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
