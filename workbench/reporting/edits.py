"""Samples with edited features beside the unedited ones from the same noise, as a picture and as scores."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from workbench.config import SamplingConfig
from workbench.evaluation.edits import SOURCES, FeatureEdit, make_edit, sample_edited
from workbench.evaluation.generate import Samples, check_sampling, generate
from workbench.evaluation.suite import score_pairs
from workbench.features.grid import whole_numbers
from workbench.features.masks import token_side
from workbench.files import write_atomically
from workbench.lab.drawing import coloured, encoded, mosaic, wrapped
from workbench.lab.progress import Report, part_of, reported
from workbench.lab.sources import RunLike, opened_runs
from workbench.lab.view import ENDINGS, checked_path
from workbench.runs.store import Run, open_run
from workbench.runs.weak import WeakLike, check_weak, find_weak

_SHOWN = 10  # samples of a figure


@dataclass(frozen=True, eq=False)
class Patched:
    """Samples of `wb.patch`: `before` without and `after` with the edit, for `labels`; sample i has the same noise."""

    run: Run
    step: int
    edit: FeatureEdit
    sampling: SamplingConfig
    before: UInt8[Tensor, "n c x y"]
    after: UInt8[Tensor, "n c x y"]
    labels: Int[Tensor, "n"]

    @property
    def changed(self) -> np.ndarray:
        """Mean absolute change of each image, in levels of 0 to 255."""
        return (self.after.float() - self.before.float()).abs().mean(dim=(1, 2, 3)).numpy()

    def score(
        self,
        scores: Sequence[str] = ("fd", "class-agreement"),
        *,
        detector: str | None = None,
        small_ok: bool = False,
        progress: Report | None = None,
    ) -> list[dict[str, Any]]:
        """Scores before and after, and their difference with a 95 % interval over the choice of (paired) images.

        Args:
            scores: Kinds of scores: "fd", "class-agreement", "kid", "precision", ...
            detector: As of `wb.score`.
            small_ok: Allow, and mark, fewer images than twice the detector's dimensions.
            progress: Called with (stage, done, total).

        Returns:
            A record for each score, with ``before``, ``after``, ``difference``, ``low``, ``high``, and what was edited.

        Raises:
            ValueError: As `wb.score`.
        """
        before, after = Samples(self.before, self.labels), Samples(self.after, self.labels)
        with reported(progress) as report:
            records = score_pairs(
                self.run,
                before,
                after,
                scores=scores,
                detector=detector,
                seed=self.sampling.seed,
                small_ok=small_ok,
                progress=report,
            )
        how = {"step": self.step, "sampling": self.sampling.__dict__, "edit": self.edit.about}
        return [{**record, **how} for record in records]

    def figure(self, count: int = _SHOWN) -> Figure:
        """The first `count` samples: without the edit, with it, and the change, from white (none) to black.

        If some of the tokens were edited, their outline is drawn. Raises ValueError for a count below 1.
        """
        if count < 1:
            raise ValueError(f"count is {count}; allowed are 1 to {len(self.labels)} samples")
        images = [coloured(images[:count].numpy()) for images in (self.before, self.after)]
        change = np.abs(images[1].astype(np.int16) - images[0]).mean(axis=-1, keepdims=True)
        rows = [*map(list, images), list(coloured(255 - change.astype(np.uint8)))]
        classes = [str(name) for name in self.run.latents["classes"]]
        names = ["without edit", wrapped(self.edit.text.replace(", ", "\n"), 24), "change"]
        columns = [classes[label] for label in self.labels[:count].tolist()]
        return mosaic(rows, names, columns, cell=0.8, outlines=self._outlines())

    def save(self, file: str | Path, count: int = _SHOWN) -> Path:
        """Write the figure as PNG, SVG or PDF on white; return the path. Raises ValueError for another ending."""
        path = checked_path(file, ENDINGS)
        write_atomically(path, encoded([self.figure(count)], path.suffix[1:]))
        return path

    def _outlines(self) -> list[np.ndarray]:
        if self.edit.tokens is None:
            return []
        side = token_side(self.run)
        mask = np.isin(np.arange(side * side), self.edit.tokens).reshape(side, side)
        return [mask] * 3

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=110, facecolor="white", bbox_inches="tight")
        return buffer.getvalue()

    def __repr__(self) -> str:
        return f"Patched({len(self.labels)} samples of {self.run.name} at step {self.step:,}, {self.edit.text})"


def patch(
    run: RunLike,
    layer: int,
    *,
    with_: str | Run = "guided",
    tokens: str | Sequence[int] | tuple[slice, slice] | np.ndarray = "all",
    t: tuple[float, float] = (0.0, 1.0),
    w: float | None = None,
    strength: float = 1.0,
    label: int | str | None = None,
    with_step: int | None = None,
    step: int | None = None,
    count: int = _SHOWN,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    weak: WeakLike = None,
    progress: Report | None = None,
) -> Patched:
    """Generate images with edited features of a layer, and the same images without the edit.

    At each evaluation of the network, the chosen tokens f of the layer are replaced by g, or moved towards it, and the
    later blocks go on with them. Both images of a sample start from the same noise, that of ``wb.samples``. In guided
    sampling the evaluations with the null label are edited too, with g for the null label, which is f itself for
    "guided" and "class".

    Args:
        run: The run, or its name or folder.
        layer: Layer, counted from 1; 0 is the patch embedding.
        with_: What g is. "guided": f_g = f_u + w (f_c - f_u), Eq. 3, at the same x_t. "class": f with another label.
            "image": f of another sample of the same class, from other noise. "noise": Gaussian noise with the mean and
            standard deviation of f over tokens in each channel. "zero". Or another run, or its name: f of that run.
        tokens: "all", token numbers from 0 in row-major order, a rectangle ``np.s_[2:6, 2:6]`` (rows, columns), or a
            boolean array of the grid.
        t: Window (low, high) of noise levels in which features are edited, both ends included; 0 is data, 1 is noise.
        w: Guidance scale of "guided", by default 2; 1 changes nothing and 0 gives f_u.
        strength: f becomes f + strength (g - f); 1 replaces.
        label: Class of "class", by number or name.
        with_step: Training step of the other run; its last by default. With the run itself: its earlier features.
        step: Training step of the run; its last by default.
        count: Number of samples.
        seed: Seed of the noise.
        sampling: Sampler, steps, guidance and weights; by default the run's own. Its count and seed do not matter.
        weak: For "guided": a weak model in place of the null label, as of ``wb.maps``. g is f_weak + w (f - f_weak),
            also in evaluations with the null label.
        progress: Called with (stage, done, total).

    Returns:
        A ``Patched`` with the images ``before`` and ``after``, ``labels`` and ``changed`` (mean absolute change of each
        image). ``figure()`` and ``save(file)`` show them, ``score()`` compares them by Frechet distance and class
        agreement with paired intervals.

    Raises:
        ValueError: For a layer, token, window or class that does not exist, a run without a trained null label, another
            run or weak model whose features do not fit, a backbone that takes no edits, and an edit that makes values
            that are not finite.

    Examples:
        >>> fast = wb.load_config("zoo/guided", ["sampling.steps=4"]).sampling
        >>> patched = wb.patch(wb.zoo("guided"), layer=8, w=4.0, t=(0.4, 1.0), count=2, sampling=fast)
        >>> patched.after.shape, patched.save("patched.png").name
        (torch.Size([2, 1, 32, 32]), 'patched.png')
    """
    (opened,) = opened_runs(run)
    if not (sampling is None or isinstance(sampling, SamplingConfig)):
        raise ValueError(f"sampling is {sampling!r}; allowed is the `sampling` of a configuration (wb.load_config)")
    settings = replace(
        sampling or opened.config.sampling,
        count=whole_numbers("count", [count])[0],
        seed=whole_numbers("seed", [seed])[0],
    )
    check_sampling(opened, settings)
    at = opened.checkpoint(step).step
    against = None if weak is None else find_weak(weak, opened)
    if against is not None:
        check_weak(opened, [at], against)
    edit = make_edit(
        opened,
        layer,
        settings,
        with_=_source(with_, opened),
        tokens=tokens,
        t=t,
        w=w,
        strength=strength,
        label=label,
        with_step=with_step,
        weak=against,
    )
    with reported(progress) as report:
        # The edited ones first, as an edit may turn out to be impossible.
        after = sample_edited(opened, at, settings, edit, part_of(report, "samples", 0, 2, count))
        before = generate(opened, at, settings, part_of(report, "samples", 1, 2, count))
    return Patched(opened, at, edit, settings, before.images, after, before.labels)


def _source(with_: Any, run: Run) -> str | Run:
    """The source by name, or the run of that name; ValueError if it is neither."""
    if isinstance(with_, Run) or (isinstance(with_, str) and with_ in SOURCES):
        return with_
    try:
        return open_run(with_, run.folder.parent)
    except (ValueError, TypeError) as error:
        allowed = ", ".join(map(repr, SOURCES))
        raise ValueError(f"with_ is {with_!r}; allowed are {allowed}, or a run ({error})") from error
