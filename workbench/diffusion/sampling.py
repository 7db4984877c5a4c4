"""ODE and SDE samplers of the REPA family, with interval guidance."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from workbench.diffusion.guidance import UNGUIDED, Guidance, guide_velocity
from workbench.diffusion.paths import LINEAR, Path, velocity_to_score
from workbench.diffusion.schedules import time_grid

SAMPLERS = ("euler", "heun", "euler-maruyama")


class NotFinite(ValueError):
    """A sampler's state is not finite: ``row`` of the batch, first after ``step``, counted from 1."""

    def __init__(self, row: int, step: int, steps: int):
        super().__init__(f"row {row} of the samples is not finite after step {step} of {steps} of the sampler")
        self.row, self.step = row, step


LAST_STEP = 0.04  # size of the noiseless last step of the SDE, as published for SiT and REPA


def _grid(sampler: str, steps: int, last_step: float, shift: float) -> Float64[Tensor, "{steps}+1"]:
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; allowed: {', '.join(SAMPLERS)}")
    return time_grid(steps, last_step if sampler == "euler-maruyama" else None, shift)


@dataclass(frozen=True)
class _GuidedVelocity:
    """The network for the solver: float64 in and out, one time for the batch, optionally guided."""

    velocity: Callable[[Tensor, Tensor, Tensor], Tensor]
    labels: Tensor
    null_label: int | None
    guidance: Guidance
    dtype: torch.dtype
    weak: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def __call__(self, x: Tensor, t: float, guided: bool) -> Tensor:
        if not guided:
            return self._evaluate(self.velocity, x, t, self.labels)
        if self.weak is not None:
            v_c, v_u = (self._evaluate(of, x, t, self.labels) for of in (self.velocity, self.weak))
        else:
            assert self.null_label is not None  # refused by `sample`
            null = torch.full_like(self.labels, self.null_label)
            both = torch.cat([self.labels, null])
            v_c, v_u = self._evaluate(self.velocity, torch.cat([x, x]), t, both).chunk(2)
        return guide_velocity(v_u, v_c, self.guidance.scale, self.guidance.channels)

    def _evaluate(self, velocity: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, t: float, y: Tensor) -> Tensor:
        times = torch.full((len(x),), t, dtype=self.dtype, device=x.device)
        return velocity(x.to(self.dtype), times, y).to(torch.float64)


_Field = Callable[[Tensor, float], Tensor]


def _euler_step(field: _Field, x: Tensor, t: float, t_next: float) -> Tensor:
    return x + (t_next - t) * field(x, t)


def _heun_step(field: _Field, x: Tensor, t: float, t_next: float) -> Tensor:
    v = field(x, t)
    v_next = field(x + (t_next - t) * v, t_next)
    return x + (t_next - t) * (v + v_next) / 2


def _sde_step(field: _Field, x: Tensor, t: float, t_next: float, path: Path, noise: Tensor | None) -> Tensor:
    v = field(x, t)
    # The marginals are those of the ODE for every w >= 0. With w = 2t the drift stays bounded on both paths, as the
    # score grows as 1/t. Guiding v before this line is the same as guiding the drift, which is affine in v.
    w = 2 * t
    score = velocity_to_score(path, x, torch.full((len(x),), t, dtype=x.dtype, device=x.device), v)
    mean = x + (t_next - t) * (v - w / 2 * score)
    if noise is None:
        return mean
    assert noise.shape == x.shape, f"step_noise gave {tuple(noise.shape)}, the state is {tuple(x.shape)}"
    return mean + (w * abs(t_next - t)) ** 0.5 * noise.to(mean)


@torch.no_grad()
def sample(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    noise: Float[Tensor, "b c h w"],
    labels: Int[Tensor, "b"],
    *,
    null_label: int | None,
    sampler: str = "euler",
    steps: int = 50,
    guidance: Guidance = UNGUIDED,
    path: Path = LINEAR,
    last_step: float = LAST_STEP,
    shift: float = 1.0,
    step_noise: Callable[[int], Tensor] | None = None,
    weak: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Integrate `velocity(x, t, y) -> v` from noise (t = 1) to data (t = 0), with the samplers of REPA and the paper.

    "euler" and "heun" solve dx = v dt on equal steps; Heun omits the corrector in the last step. "euler-maruyama"
    solves the reverse SDE dx = (v - w/2 score) dt + sqrt(w) dW with w = 2t; the last step of its grid, from `last_step`
    to 0, adds no noise. `step_noise(i)` returns the standard normal noise "b c h w" of step i = 0 ... steps - 2. Only
    the SDE uses `path`, `last_step` and `step_noise`.

    `shift` warps the grid of any sampler (see `time_grid`), including the SDE's `last_step`. LightningDiT samples with
    "euler", 249 steps and shift 0.3. Its guidance of the first three channels from a start time u0 on its own axis
    (u = 1 - t, so no guidance near noise) is `Guidance(scale, high=1 - u0, channels=3)`, evaluated at shifted times.

    The state is float64. The network gets x and t in the dtype of `noise`, which is also the dtype of the result. A
    step that starts inside the guidance interval evaluates one batch of 2b rows, [classes | null]; any other step only
    evaluates the b conditional rows. With `weak`, the velocity of a weak model with the classes takes the place of that
    with the null label (autoguidance, Karras et al. 2024). `progress(done, steps)` is called after each step.

    Raises ValueError for an unknown sampler, a wrong grid, an SDE without `step_noise`, or guidance with `null_label`
    None (a model without a null label); and NotFinite.
    """
    times = _grid(sampler, steps, last_step, shift).tolist()
    if guidance.scale != 1 and null_label is None and weak is None:
        raise ValueError(f"guidance of scale {guidance.scale} needs a null label, and null_label is None")
    if sampler == "euler-maruyama" and step_noise is None:
        raise ValueError("sampler 'euler-maruyama' needs step_noise(i), the standard normal noise of step i")
    network = _GuidedVelocity(velocity, labels, null_label, guidance, noise.dtype, weak)
    x = noise.to(torch.float64)
    broken = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # first non-finite step of each row, from 1
    for step, (t, t_next) in enumerate(pairwise(times)):
        field = partial(network, guided=guidance.active(t))
        last = step == steps - 1
        if sampler == "euler-maruyama":
            drawn = None if last or step_noise is None else step_noise(step)
            x = _sde_step(field, x, t, t_next, path, drawn)
        elif sampler == "heun" and not last:
            x = _heun_step(field, x, t, t_next)
        else:
            x = _euler_step(field, x, t, t_next)
        finite = x.to(noise.dtype).isfinite().flatten(1).all(dim=1)
        broken = torch.where(~finite & (broken == 0), step + 1, broken)  # only read at the end: no synchronization
        if progress is not None:
            progress(step + 1, steps)
    if broken.any():
        first = int(broken[broken > 0].min())
        raise NotFinite(int((broken == first).nonzero()[0]), first, steps)
    return x.to(noise.dtype)


def evaluation_times(sampler: str, steps: int, last_step: float = LAST_STEP, shift: float = 1.0) -> list[float]:
    """The distinct times t at which `sample` evaluates the network, from noise to data.

    Raises ValueError for an unknown sampler or a wrong grid.
    """
    # Heun's corrector is evaluated where the next step starts; the last step has none.
    return _grid(sampler, steps, last_step, shift).tolist()[:-1]


def evaluations(sampler: str, steps: int, guidance: Guidance, last_step: float = LAST_STEP, shift: float = 1.0) -> int:
    """Number of network evaluations that `sample` needs per image; a guided evaluation counts as 2.

    Raises ValueError for an unknown sampler or a wrong grid.
    """
    starts = _grid(sampler, steps, last_step, shift).tolist()[:-1]
    costs = [2 if guidance.active(t) else 1 for t in starts]
    return 2 * sum(costs) - costs[-1] if sampler == "heun" else sum(costs)
