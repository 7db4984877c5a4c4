"""Select and check the runs, training steps, layers, times and images of a view before anything is computed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int64, Integer, UInt8
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from workbench.config import DataConfig, backbone_sizes
from workbench.data.images import Images, load_images, token_share
from workbench.features.extract import extract
from workbench.features.grid import FeatureGrid, real_numbers, whole_numbers
from workbench.features.masks import token_side
from workbench.features.targets import CLEAN, TARGETS, target_tokens
from workbench.lab.definitions import FEATURE_GUIDANCE, GUIDANCE, NOISE, WEAK_FEATURE, hint_of
from workbench.lab.made import Made, made_of
from workbench.lab.panes import Axis, image_axis
from workbench.lab.progress import Report, part_of
from workbench.runs.models import check_null_class
from workbench.runs.store import Run, open_run
from workbench.runs.weak import Weak, WeakLike, check_weak, find_weak

RunLike = Run | str | Path
Steps = Literal["all"] | Sequence[int] | int | None
Pair = tuple[Float[Tensor, "n m d"], Float[Tensor, "n m d"]]  # f_u and f_c, or f_weak and f

SLOW_LAYERS = 4  # default number of layers of views that are slow to compute
_ALL_LAYERS, _FEW_LAYERS, _FEWEST_LAYERS = 16, 8, 3
_THUMBNAILS = 1_000_000  # bytes in total
_TARGETS = {
    "vae": "VAE latent",
    "effnet-lite0": "EfficientNet-Lite0",
    **{name: f"DINOv2-{name[-1].upper()}" for name in TARGETS if "dinov2" in name},
    "layersync": "LayerSync target",
    "sra": "SRA target",
}


@dataclass(frozen=True, eq=False)
class Source:
    """A run or target: ``read(step, t, layer)`` gives f_u and f_c, or f_weak and f, with `step` an index.

    `layered` is False for a target, which is the same for all layers.
    """

    title: str
    read: Callable[[int, float, int], Pair]
    layered: bool = True


@dataclass(frozen=True, eq=False)
class Subject:
    """What a view shows. Images and targets are those of the first run; `steps` has as many entries for each run.

    `weak` is the weak model of each run, if features are guided against one instead of the null label.
    """

    runs: tuple[Run, ...]
    targets: tuple[str, ...]
    steps: tuple[tuple[int, ...], ...]
    layers: tuple[int, ...]
    times: tuple[float, ...]
    rows: tuple[int, ...]
    images: Images
    data: DataConfig | None
    weak: tuple[Weak, ...] = ()

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """The class of each row."""
        return self.images.labels[list(self.rows)].astype(np.int64)

    @property
    def names(self) -> list[str]:
        """The name of the class of each row."""
        return [self.images.classes[label] for label in self.labels]

    @property
    def titles(self) -> list[str]:
        """A name for each run and target, with the training step if it differs between runs."""
        return [*titles_of(self.runs, self.steps), *self.targets]

    @property
    def still(self) -> dict[str, list[int]]:
        """Indices of the sources that do not depend on t, and of those that do not depend on w."""
        numbered = list(enumerate(self.targets, start=len(self.runs)))
        return {"t": [number for number, name in numbered if name in CLEAN], "w": [number for number, _ in numbered]}

    @property
    def made(self) -> Made:
        """How the pictures are made, as a page says it."""
        return made_of(self.runs, self.steps, self.targets, self.images, self.rows, self.weak)

    @property
    def against(self) -> str:
        """What w is guided against, as the end of a title; "" for the null label."""
        if not self.weak:
            return ""
        own = all(of.run.folder == run.folder for of, run in zip(self.weak, self.runs, strict=True))
        return f", guided against {'' if own else f'{self.weak[0].run.config.name}, '}step {self.weak[0].step:,}"

    def nearest_layer(self, share: float) -> int:
        """Index of the layer nearest to a fraction of the depth."""
        return int(np.abs(np.array(self.layers) - share * max(self.layers)).argmin())

    def of(self, rows: Sequence[int]) -> "Subject":
        """The same with other images."""
        return replace(self, rows=tuple(rows))

    def grids(
        self,
        report: Report,
        stage: str,
        labels: Sequence[str] | None = None,
        pooling: Literal["tokens", "mean"] = "tokens",
        last: bool = False,
    ) -> list[list[FeatureGrid]]:
        """Features by run and training step, cached beside the run; `last`: of each run's last layer too.

        By default of the label modes that guidance needs. Those of a weak model are the grids' `weak`.
        """
        labels = labels or (("true",) if self.weak else ("null", "true"))
        parts = sum(map(len, self.steps)) + len(self.weak)
        each, done = len(self.rows) * len(self.times) * len(labels), 0

        def extracted(run: Run, step: int, own: Run) -> FeatureGrid:
            nonlocal done
            done += 1
            return extract(
                run,
                list(self.rows),
                [*self.layers, *([depth_of(run)] if last else [])],
                list(self.times),
                step=step,
                labels=labels,
                pooling=pooling,
                data=self.data or own.config.data,  # a weak model may have been trained on fewer of the images
                root=own.folder.parent,
                progress=part_of(report, stage, done - 1, parts, each),
            )

        grids: list[list[FeatureGrid]] = []
        for number, (run, steps) in enumerate(zip(self.runs, self.steps, strict=True)):
            weak = None
            if self.weak:
                of = self.weak[number]
                weak = extracted(of.run, of.step, run)
            grids.append([replace(extracted(run, step, run), weak=weak) for step in steps])
        return grids

    def sources(self, grids: Sequence[Sequence[FeatureGrid]], report: Report) -> list[Source]:
        """A source for each run and target; mean-pooled features have one token per image."""
        runs = [_source_of(title, by_step) for title, by_step in zip(self.titles, grids, strict=False)]
        pooled = grids[0][0].pooling == "mean"
        return [*runs, *(self._target(name, pooled, report) for name in self.targets)]

    def _target(self, name: str, pooled: bool, report: Report) -> Source:
        run, steps = self.runs[0], self.steps[0]
        report(f"target {name}", 0, len(steps))
        targets = []
        for step in steps:
            tokens = target_tokens(name, run, self.rows, self.times, step=step, data=self.data, root=run.folder.parent)
            targets.append({t: of.mean(dim=1, keepdim=True) if pooled else of for t, of in tokens.items()})
            report(f"target {name}", len(targets), len(steps))
        return Source(name, lambda step, t, layer: (targets[step][t], targets[step][t]), layered=False)

    def axes(self, w: tuple[float, float], stops: Sequence[float] = ()) -> dict[str, Axis]:
        """The axes of a view; axes with one value get no slider."""
        texts = [_TARGETS.get(title, title) for title in self.titles]
        beside = Axis("run or target" if self.targets else "run", self.titles, texts=texts)
        return ({"source": beside} if len(self.titles) > 1 else {}) | {
            "step": Axis("training step", self.steps[0]),
            "t": Axis(NOISE, self.times),
            "layer": Axis("layer", self.layers),
            "w": guidance_axis(self.weak, (float(w[0]), float(w[1]), 0.1), continuous=True, stops=list(stops)),
        }

    def image_axis(self, rows: Sequence[int]) -> Axis:
        """The axis of the images that have token maps."""
        return image_axis(rows, self.of(rows).names)

    def pictures(self, side: int = 128) -> UInt8[np.ndarray, "n h w c"]:
        """The images, at most `side` pixels wide."""
        images = self.images.batch(self.rows)
        if images.shape[-1] > side:
            images = adaptive_avg_pool2d(images.float(), side).round().to(torch.uint8)
        return rearrange(images, "n c h w -> n h w c").contiguous().numpy()

    def shares(self) -> Float[Tensor, "n m"]:
        """Share of each token that is object; ValueError for images without masks."""
        return token_share(self.images.masks(self.rows), token_side(self.runs[0]))

    def objects(self, side: int = 128) -> UInt8[np.ndarray, "n h w"]:
        """1 where an image shows its object, at most `side` pixels wide; ValueError for images without masks."""
        masks = self.images.masks(self.rows)
        if masks.shape[-1] > side:
            masks = adaptive_avg_pool2d(masks[:, None].float(), side)[:, 0] >= 0.5
        return masks.to(torch.uint8).numpy()

    def thumbnails(self) -> UInt8[np.ndarray, "n h w c"]:
        """The images, small enough that all of them together stay a small part of a page."""
        return self.pictures(min(32, math.isqrt(_THUMBNAILS // (len(self.rows) * self.images.channels))))


def _source_of(title: str, by_step: Sequence[FeatureGrid]) -> Source:
    """The source of a run, from its features at each training step."""

    def read(step: int, t: float, layer: int) -> Pair:
        first, second = by_step[step].pair(layer, t)
        return _as_tokens(first, by_step[step]), _as_tokens(second, by_step[step])

    return Source(title, read)


def choose(
    sources: Sequence[RunLike] | RunLike,
    *,
    images: int | Sequence[int],
    layers: Sequence[int] | None,
    times: Sequence[float],
    steps: Steps,
    data: DataConfig | None,
    weak: WeakLike = None,
    room: float | int | Callable[[int, int], float] = math.inf,
    alone: bool = False,
    controls: bool = False,
) -> Subject:
    """Select what a view shows of `sources`: runs and targets, one or several.

    Args:
        sources: Runs, their folders or names, and names of targets.
        images: Number of images, balanced over the classes, or row numbers.
        layers: Layers. None is all layers of a model of up to 16, else 8 evenly spread ones, or as many as there is
            `room` for, but at least three.
        times: Noise levels t in 0..1.
        steps: Training steps. None is the last one that all runs have, or each run's last if they share none; "all" is
            every step that all runs have.
        data: Image set, for imported runs.
        weak: Weak model to guide against instead of the null label, as of `find_weak`; a step is each run's own.
        room: Largest number of layers where `layers` is None: a number, or a function of the number of combinations of
            source, step, time and image, and of the number of tokens per image.
        alone: Allow one run only.
        controls: Whether the null label is needed, also with a weak model.

    Raises:
        ValueError: For more than one source with `alone`, a run without checkpoints or with an untrained null class, a
            layer, step or image that does not exist, runs trained on different images, and a weak model that does not
            fit or is what is shown.
    """
    moments = real_numbers("times", times, 0.0, 1.0)
    several = [sources] if isinstance(sources, RunLike) else list(sources)
    targets = tuple(name for name in several if name in TARGETS)
    named = [source for source in several if source not in TARGETS]
    if alone and (targets or len(named) != 1):
        raise ValueError(f"got {several}; allowed is one run, whose features are measured")
    if not named or len(set(targets)) < len(targets):
        given = [source.name if isinstance(source, Run) else source for source in several]
        raise ValueError(f"got {given}; allowed are one or more runs, and distinct targets: {', '.join(TARGETS)}")
    runs = tuple(opened_runs(named))
    if weak is None or controls:
        for run in runs:
            check_null_class(run, "features cannot be guided without one, except against a weak model (weak=)")
    shown = tuple(steps_of(runs, steps))
    weaks = () if weak is None else tuple(find_weak(weak, run) for run in runs)
    for run, own, of in zip(runs, shown, weaks, strict=False):
        check_weak(run, own, of, () if layers is None else whole_numbers("layers", layers))
    if controls:
        for of in weaks:
            check_null_class(of.run, "the view needs features with the null label")
    pictured = _images(runs, data)
    rows = choose_rows(pictured.labels, images)
    combinations = len(rows) * len(shown[0]) * len(moments) * len(several)
    most = room if isinstance(room, int | float) else room(combinations, tokens_of(runs[0]))
    return Subject(
        runs=runs,
        targets=targets,
        steps=shown,
        layers=_layers(runs if layers is not None else [*runs, *(of.run for of in weaks)], layers, most),
        times=moments,
        rows=tuple(rows),
        images=pictured,
        data=data,
        weak=weaks,
    )


def choose_measured(given: Mapping[str, Any], room: float | int | Callable[[int, int], float] = SLOW_LAYERS) -> Subject:
    """What a view with measures shows of one run, given each label: `choose` of its arguments of these names."""
    named = {name: given[name] for name in ("images", "layers", "times", "data", "weak")}
    return choose(given["run"], **named, steps=given["step"], room=room, alone=True, controls=True)


def guidance_range(w: Any) -> tuple[float, float]:
    """The lowest and highest w of a slider; ValueError unless these are two finite numbers, the lower one first."""
    ends = real_numbers("w", w)
    if len(ends) != 2 or ends[0] >= ends[1]:
        raise ValueError(f"w is {w!r}; allowed are the lowest and a higher value, such as (0.0, 30.0)")
    return ends[0], ends[1]


def guidance_axis(weak: Sequence[Weak], values: tuple[float, ...], **more: Any) -> Axis:
    """The axis of the guidance scale w of features, against weak models if there are any."""
    if not weak:
        return Axis(GUIDANCE, values, about=FEATURE_GUIDANCE, hint=hint_of("w"), **more)
    about = weak_text(weak, r"f_g = f_{\text{weak}} + w\,(f - f_{\text{weak}})", "feature")
    return Axis(f"{GUIDANCE} (weak model)", values, about=about, hint=WEAK_FEATURE, **more)


def weak_text(weak: Sequence[Weak], formula: str, of: str) -> str:
    """What guidance against a weak model is, as Markdown, for the definition of w."""
    named = "; ".join(dict.fromkeys(one.text for one in weak))
    return (
        f"the guidance scale of the {of} against a weak model, ${formula}$ (autoguidance), not against the null label. "
        f"The weak model is {named}; both models are given the same input and label. w = 0 is the weak model's "
        f"{of}, w = 1 the run's own, and a larger w exaggerates what the run has learned beyond the weak model."
    )


def opened_runs(runs: Sequence[RunLike] | RunLike) -> list[Run]:
    """The runs, opened; ValueError for none, or one given twice."""
    named = [runs] if isinstance(runs, RunLike) else runs
    several = [run if isinstance(run, Run) else open_run(run) for run in named]
    if not several or len({run.folder.resolve() for run in several}) < len(several):
        raise ValueError(f"got the runs {[run.name for run in several]}; allowed are distinct runs, at least one")
    return several


def titles_of(runs: Sequence[Run], steps: Sequence[tuple[int, ...]]) -> list[str]:
    """A name for each run, with the training step if it differs between runs."""
    short = [run.config.name for run in runs]
    named = short if len(set(short)) == len(short) else [run.name for run in runs]
    if len(set(steps)) > 1:
        named = [f"{name}, step {own[-1]:,}" for name, own in zip(named, steps, strict=True)]
    return named


def choose_rows(labels: Integer[np.ndarray, " n"], images: int | Sequence[int]) -> list[int]:
    """Row numbers. For a count: the first image of each class, then the second of each, and so on."""
    if not isinstance(images, int):
        rows = whole_numbers("images", images)
        if not rows or not 0 <= min(rows) <= max(rows) < len(labels) or len(set(rows)) < len(rows):
            raise ValueError(
                f"images has {len(rows)} row numbers; allowed are distinct ones from 0 to {len(labels) - 1}"
            )
        return rows
    if not 1 <= images <= len(labels):
        raise ValueError(f"images is {images}; allowed are 1 to {len(labels)}, or row numbers")
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels[order])
    turn = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[np.lexsort((labels[order], turn))][:images].tolist()


def depth_of(run: Run) -> int:
    """The number of blocks of a run's backbone."""
    backbone = run.config.backbone
    return backbone_sizes(backbone.name)[backbone.options["size"]].depth


def tokens_of(run: Run) -> int:
    """The number of tokens per image."""
    return token_side(run) ** 2


def check_grids(subject: Subject) -> None:
    """ValueError unless all runs have as many tokens per image; targets have those of the first run."""
    first, *others = zip(subject.titles, map(tokens_of, subject.runs), strict=False)
    for title, count in others:
        if count != first[1]:
            raise ValueError(
                f"{title} has {count} tokens per image, {first[0]} {first[1]} tokens; the numbers must be equal, "
                "because tokens of two grids cannot be compared"
            )


def _layers(runs: Sequence[Run], layers: Sequence[int] | None, most: float | int) -> tuple[int, ...]:
    depth = min(map(depth_of, runs))
    if layers is None:
        whole = depth + 1 <= min(_ALL_LAYERS, most)
        count = depth + 1 if whole else max(_FEWEST_LAYERS, min(_FEW_LAYERS, int(min(most, depth + 1))))
        layers = np.linspace(0, depth, min(count, depth + 1)).round().astype(int).tolist()
    chosen = tuple(dict.fromkeys(whole_numbers("layers", layers)))
    wrong = [layer for layer in chosen if not 0 <= layer <= depth]
    if wrong or not chosen:
        what = wrong[0] if wrong else "empty"
        raise ValueError(f"layers has {what}; allowed are 0 (the patch embedding) to {depth}, the last block")
    return chosen


def steps_of(runs: Sequence[Run], steps: Steps) -> list[tuple[int, ...]]:
    """Training steps of each run, as `choose` describes; ValueError for a missing step, or none in common."""
    if isinstance(steps, int):
        return steps_of(runs, [steps])
    if not (steps is None or steps == "all"):
        wanted = dict.fromkeys(whole_numbers("steps", steps))
        return [tuple(run.checkpoint(step).step for step in wanted) for run in runs]
    last = [run.checkpoint().step for run in runs]  # raises for a run without checkpoints
    common = sorted(set.intersection(*({checkpoint.step for checkpoint in run.checkpoints} for run in runs)))
    if steps == "all":
        if not common:
            raise ValueError(
                f"{', '.join(run.name for run in runs)} have no training step in common; choose steps=None"
            )
        return [tuple(common)] * len(runs)
    return [(common[-1],)] * len(runs) if common else [(step,) for step in last]


def _images(runs: Sequence[Run], data: DataConfig | None) -> Images:
    first = load_images(data or runs[0].config.data, "train")
    for run in runs[1:]:
        if data is None and run.config.data != runs[0].config.data:
            other = load_images(run.config.data, "train")
            if other.content != first.content:
                raise ValueError(
                    f"{run.name} was trained on other images than {runs[0].name}; choose the images with data="
                )
    return first


def tokens_of_grid(features: FeatureGrid, layer: int, t: float, label: str) -> Float[Tensor, "n m d"]:
    """Features as tokens; mean-pooled features have one token per image."""
    return _as_tokens(features.read(layer, t, label).float(), features)


def _as_tokens(tokens: Float[Tensor, "n ..."], features: FeatureGrid) -> Float[Tensor, "n m d"]:
    return rearrange(tokens, "n d -> n 1 d") if features.pooling == "mean" else tokens
