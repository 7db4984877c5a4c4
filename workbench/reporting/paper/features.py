"""Features in the paper's figures: alignment targets of all methods on the same images, their maps and measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from workbench.config import load_config
from workbench.data.images import load_images, token_share
from workbench.evaluation.objects import FEWEST_IMAGES, Masks, ObjectSeparation, object_separation, split_masks
from workbench.evaluation.separability import Separability, separability
from workbench.evaluation.statistics import Estimate
from workbench.features.colours import colours, map_components
from workbench.features.extract import extract
from workbench.features.grid import FEWEST_TOKENS, FeatureGrid, local_distant_similarity
from workbench.features.masks import token_side
from workbench.features.projection import project
from workbench.features.targets import target_tokens
from workbench.lab.drawing import coloured
from workbench.lab.sources import choose_rows, depth_of
from workbench.reporting.paper.runs import PRESETS
from workbench.reporting.paper.table import Column, Number
from workbench.runs.store import Run

NEIGHBOURS = 20
METHODS = ("plain", "guided", "teacher", "repa", "layersync", "sra")  # whose features or targets are shown
ENCODERS = {"paper": "dinov2-b", **dict.fromkeys(("demo", "laptop", "scenes"), "effnet-lite0")}  # REPA learns from
TITLES = {
    "repa": "REPA",
    "layersync": "LayerSync",
    "sra": "SRA",
    "vae": "VAE latent",
    "guided": "ours",
}


@dataclass(frozen=True, eq=False)
class Target:
    """Alignment target of one method, as tokens of the images; ``of`` describes where it comes from."""

    name: str
    of: str
    tokens: Float[Tensor, "n m d"]


@dataclass(frozen=True, eq=False)
class Ours:
    """Source of our target: the teacher's layer, guidance scale and features with all label modes."""

    run: Run
    layer: int
    scale: float
    features: FeatureGrid


OBJECT_COLUMNS = (
    Column("object against background", "number", "area under ROC, same place"),
    Column("95 % interval, objects"),
    Column("the same within a class", "number"),
)
_UNDER_MAPS = (
    "Outlined is the object; under each map is the area under the ROC curve, in that image, of the one of three "
    "components that separates the object best in other images (the usual place of objects alone has {:.2f})."
)


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of a figure's images: outlines of those pictured, and masks of those measured, `rows`.

    The pictured images come first in `rows`, and nothing is fitted on them.
    """

    outlines: list[Bool[np.ndarray, "h w"]]
    rows: list[int]
    masks: Masks

    @property
    def caption(self) -> str:
        """What the outlines and the numbers under the maps are."""
        return _UNDER_MAPS.format(self.masks.auc_in_image_of_place)

    def measured(self, tokens: Float[Tensor, "n m d"]) -> ObjectSeparation:
        """Separation of the objects in tokens of `rows`."""
        return object_separation(tokens.float(), self.masks)

    def notes(self, found: ObjectSeparation) -> list[str]:
        """The area under the ROC curve in each pictured image."""
        areas = (found.of_image(image) for image in range(len(self.outlines)))
        return ["" if area is None else f"{area:.2f}".removeprefix("0") for area in areas]


def objects_of(run: Run, pictured: Sequence[int], images: int) -> Objects | str:
    """The objects of the pictured and of other images, `images` in all; a sentence if they cannot be measured."""
    of = load_images(run.config.data, "train")
    if not of.has_masks:
        return f"Object and background are not measured, as the images of data.name={of.name} have no masks."
    rows = list(dict.fromkeys([*pictured, *choose_rows(of.labels, images)]))
    rows = rows[: max(images, 2 * len(pictured), FEWEST_IMAGES)]
    try:
        masks = of.masks(rows)
        labels = torch.from_numpy(of.labels[rows].astype(np.int64))
        halves = split_masks(token_share(masks, token_side(run)), seed=0, held=len(pictured), labels=labels)
    except ValueError as error:
        return f"Object and background are not measured: {error}."
    return Objects(list(masks[: len(pictured)].numpy()), rows, halves)


def signed(of: Estimate, digits: int) -> str:
    """A difference with its interval, such as "+0.02 [−0.01, +0.05]"."""
    value, low, high = (f"{number:+.{digits}f}".replace("-", "\u2212") for number in (of.value, of.low, of.high))
    return f"{value} [{low}, {high}]"


def object_cells(found: ObjectSeparation | None) -> tuple[Any, ...]:
    """The cells of `OBJECT_COLUMNS`, or none."""
    if found is None:
        return ()
    numbers = [
        None if np.isnan(of.value) else Number(of.value, 3, of.low, of.high, of.count)
        for of in (found.auc_same_place, found.auc_same_class)
    ]
    return numbers[0], numbers[0] and numbers[0].interval, numbers[1]


def rows_and_images(run: Run, images: int | Sequence[int]) -> tuple[list[int], np.ndarray, Int64[Tensor, " n"]]:
    """Row numbers, balanced over the classes, the images as ``n h w 3`` and their classes."""
    pictured = load_images(run.config.data, "train")
    rows = choose_rows(pictured.labels, images)
    labels = torch.from_numpy(pictured.labels[rows].astype(np.int64))
    return rows, coloured(pictured.batch(rows).numpy()), labels


def class_names(run: Run) -> list[str]:
    """The names of a run's classes."""
    return [str(name) for name in run.latents["classes"]]


def alignment_targets(
    scale: str, runs: Mapping[str, Run], rows: Sequence[int], t: float, names: Sequence[str]
) -> tuple[list[Target], Ours | None]:
    """Alignment targets of methods at a scale, on the same images and noise, without those whose run is missing.

    LayerSync's and SRA's are computed by their own runs, or else by the plain run at the published layer.
    """
    first = runs.get("plain") or next(iter(runs.values()))
    targets: list[Target] = []
    ours = None
    for name in names:
        if name == "guided":
            ours = our_target(scale, runs, rows, t)
            if ours is not None:
                of = f"layer {ours.layer} of the guiding model, w = {ours.scale:g}, t = {t:g}"
                targets.append(Target(name, of, ours.features.guided(ours.layer, t, ours.scale)))
            continue
        source = ENCODERS[scale] if name == "repa" else name
        run = runs.get(name, first) if name in ("layersync", "sra") else first
        of = {"repa": source, "vae": "clean latent"}.get(name, f"deep layer of {run.config.name}, t = {t:g}")
        tokens = target_tokens(source, run, rows, [t], root=run.folder.parent)[t]
        targets.append(Target(name, of, tokens))
    return targets, ours


def our_target(scale: str, runs: Mapping[str, Run], rows: Sequence[int], t: float) -> Ours | None:
    """Features of the guiding model with the null, true and wrong label, and with the label over noise."""
    teacher = runs.get("teacher")
    if teacher is None:
        return None
    options = load_config(f"{scale}/{PRESETS[scale]['guided']}").objective.options
    labels = ("null", "true", "wrong", "noise-null", "noise-true")
    layer, root = options["teacher_layer"], teacher.folder.parent
    features = extract(teacher, list(rows), [layer], [t], labels=labels, root=root)
    return Ours(teacher, layer, float(options["guidance_scale"]), features)


def layers_at(run: Run, shares: Sequence[float]) -> list[int]:
    """Layers at these fractions of the depth."""
    return [max(1, round(share * depth_of(run))) for share in shares]


def joint_maps(sets: Sequence[Float[Tensor, "n m d"]]) -> list[Float[np.ndarray, "n h w 3"]]:
    """Maps of several sets of one width in one basis, so that colours agree between them."""
    maps = map_components(torch.cat([tokens.float() for tokens in sets])).colours().maps
    return np.split(maps, np.cumsum([len(tokens) for tokens in sets])[:-1])


def aligned_maps(
    tokens: Float[Tensor, "n m d"], reference: Float[Tensor, "n m 3"] | None = None
) -> tuple[Float[np.ndarray, "n h w 3"], Float[Tensor, "n m 3"], float]:
    """Maps in a basis of their own, Procrustes-aligned with `reference` if it is given.

    Returns the maps, the coordinates of the tokens, and the fraction of variance that the three colours show.
    """
    projection = project(tokens.float(), components=3)
    shared = float(projection.explained.sum())
    if reference is not None:
        projection = projection.aligned_to(reference, 0.0, 0.0)
    coordinates = projection.at(0.0, 0.0)
    return colours(coordinates).maps, coordinates, shared


def measured(rows: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], seed: int = 0) -> Separability:
    """Separability in the original space, with fewer neighbours where there are few images."""
    return separability(rows, labels, seed=seed, neighbours=max(1, min(NEIGHBOURS, len(labels) // 8)))


def spatial(tokens: Float[Tensor, "n m d"]) -> float | None:
    """Mean local-distant similarity: how much more alike near tokens are than distant ones; None for few tokens."""
    if tokens.shape[1] < FEWEST_TOKENS:
        return None
    return float(local_distant_similarity(tokens.float()).mean())
