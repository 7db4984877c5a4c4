"""The weak model of autoguidance (Karras et al. 2024): another run, or another step of the same run.

Guidance against the null label is f_g = f_u + w (f_c - f_u), Eq. 3. Against a weak model it is
f_g = f_weak + w (f - f_weak), where f and f_weak are features of the same x_t and label. Velocities likewise.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from workbench.config import backbone_sizes
from workbench.runs.store import Run, open_run

Reference: TypeAlias = Run | str | Path
WeakLike: TypeAlias = Reference | int | tuple[Reference, int] | None

_STEP = re.compile(r"[0-9]{1,12}")
_ALLOWED = (
    "allowed are another run, a step of the run itself, such as 1200, or a run and its step, such as (run, 1200) or "
    "'RUN@1200'"
)


@dataclass(frozen=True)
class Weak:
    """A run at a step, whose features or velocities are guided against."""

    run: Run
    step: int

    @property
    def text(self) -> str:
        return f"{self.run.name}, step {self.step:,}"


def find_weak(weak: WeakLike, run: Run) -> Weak:
    """The weak model that `weak` names for `run`: a step alone is one of the run's own, a run alone is at its last.

    Raises ValueError for anything else, and for a run or step that does not exist.
    """
    reference, step = _parted(weak)
    if reference is None:
        other = run
    elif isinstance(reference, Run):
        other = reference
    else:
        try:
            other = open_run(reference, run.folder.parent)
        except ValueError as error:
            raise ValueError(f"weak is {str(reference)!r}, and {error}; {_ALLOWED}") from error
    return Weak(other, other.checkpoint(step).step)


def check_weak(run: Run, steps: Sequence[int], weak: Weak, layers: Sequence[int] = ()) -> None:
    """Raise ValueError if `weak` is the run itself at one of these steps, or its features or velocities do not fit."""
    if weak.run.fingerprint == run.fingerprint and weak.step in steps:
        others = [of.step for of in run.checkpoints if of.step not in (weak.step, *steps)]
        own = f"another of its steps ({', '.join(map(str, others))}), " if others else ""
        raise ValueError(
            f"weak is {weak.text}, the same weights as the run itself, so f - f_weak is 0: choose {own}another run, or "
            f"other steps to show than {weak.step}"
        )
    different = differences(run, weak.run, layers)
    sets = [of.config.data.path or of.config.data.name for of in (weak.run, run)]
    if sets[0] != sets[1] and not _imported(run, weak.run):
        different.append(f"images {sets[0]!r} instead of {sets[1]!r}")
    if different:
        raise ValueError(
            f"weak is {weak.run.name}, which cannot guide {run.name}: it has {', '.join(different)}; allowed are runs "
            f"with the same VAE, images, classes, noise path, tokens and width, and with these layers"
        )


def differences(run: Run, other: Run, layers: Sequence[int] = ()) -> list[str]:
    """Why features of `other` in `layers` cannot be combined with those of `run`, in words; [] if they can.

    Of imported runs the number of classes is known, but not their names.
    """
    mine, its = run.latents, other.latents
    sizes, others = (backbone_sizes(of.config.backbone.name)[of.config.backbone.options["size"]] for of in (run, other))
    compared: list[tuple[str, Any, Any]] = [
        ("VAE", mine["vae"]["name"], its["vae"]["name"]),
        ("channels", mine["channels"], its["channels"]),
        ("height", mine["height"], its["height"]),
        ("classes", len(mine["classes"]), len(its["classes"])),
        ("noise path", run.config.diffusion.path, other.config.diffusion.path),
        ("width", sizes.width, others.width),
        ("tokens", _tokens(run), _tokens(other)),
    ]
    hashes = mine["vae"]["hash"], its["vae"]["hash"]
    if None in hashes:  # sd-vae-ft-ema and sd-vae-ft-mse have the encoder of sd-vae
        compared[0] = ("VAE", *(name.partition("-ft-")[0] for name in compared[0][1:]))
    else:
        compared.insert(1, ("hash of the VAE", *hashes))
    found = [f"{what} {theirs!r} instead of {ours!r}" for what, ours, theirs in compared if ours != theirs]
    if not found and not _imported(run, other) and list(mine["classes"]) != list(its["classes"]):
        found.append("classes of other names")
    if layers and others.depth < max(layers) <= sizes.depth:  # else `run` has no such layer either
        found.append(f"{others.depth} layers, so no layer {max(layers)}")
    return found


def _parted(weak: Any) -> tuple[Reference | None, int | None]:
    """The run that `weak` names, None for the run itself, and its step, None for the last."""
    if isinstance(weak, tuple | list) and len(weak) == 2:
        reference, step = weak
        if isinstance(reference, Reference) and _is_step(step):
            return reference, step
    elif _is_step(weak):
        return None, weak
    elif isinstance(weak, str):
        name, at, step = weak.rpartition("@")
        if _STEP.fullmatch(step) and not (at and not name):
            return name or None, int(step)
        return weak, None
    elif isinstance(weak, Run | Path):
        return weak, None
    raise ValueError(f"weak is {weak!r}; {_ALLOWED}")


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _imported(*runs: Run) -> bool:
    return any("origin" in run.provenance for run in runs)


def _tokens(run: Run) -> int:
    return (run.latents["height"] // run.config.backbone.options["patch"]) ** 2
