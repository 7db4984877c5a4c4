"""Object against background: how well tokens on an object separate from those beside it, given the object's mask.

The paper says that guidance brings the object forward and calms the background. With masks these are numbers: each
token has the share of it that the object covers, and counts as on the object if that is at least half.

Everything that is fitted (principal components, which of them and with which sign, the threshold, the linear probe) is
fitted on one half of the images and measured on the other. Intervals are over images, not tokens: the tokens of an
image resemble each other. All measures use the same resampled images, so that differences between them are paired.

Objects are more often in the middle than at the edge, so the place of a token alone tells much about it, and a
component that is only position looks like one that sees the object. The measures "at the same place" therefore compare
tokens at one place in images that have the object there with those in images that have not: position alone gives
exactly one half. A class has a shape, so the label too tells where the object is; those "of the same class" compare
images of one class only, where position and label together give one half.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from workbench.diffusion.devices import one_core
from workbench.evaluation.frechet import finite_rows
from workbench.evaluation.separability import cosine_silhouette, unit_rows
from workbench.evaluation.statistics import Estimate

FEWEST_IMAGES = 4  # two to fit on and two to measure on
_ON = 0.5  # share of a token from which it counts as on the object
_COMPONENTS = 3  # those that a map shows as red, green and blue
_PENALTY = 0.01  # of the probe, as a fraction of the variance of a standardized feature
_THRESHOLDS = 99  # percentiles of the component that are tried
_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Masks:
    """The object in each image as shares of tokens ``n m``, the two halves of the images, and their resamples.

    `fit` and `held` are numbers of images. `counts` says how often each held image is drawn in each resample, and
    `counts_of_all` the same for all images. `labels` are the classes of the images, if they are known.
    """

    shares: Float64[np.ndarray, "n m"]
    fit: Int64[np.ndarray, " f"]
    held: Int64[np.ndarray, " h"]
    counts: Float64[np.ndarray, "r h"]
    counts_of_all: Float64[np.ndarray, "r n"]
    labels: Int64[np.ndarray, " n"] | None = None

    @cached_property
    def inside(self) -> Bool[np.ndarray, "n m"]:
        """The tokens on the object."""
        return self.shares >= _ON

    @cached_property
    def place(self) -> Float64[np.ndarray, " m"]:
        """How often the object is at each place in the images that are fitted on."""
        return self.inside[self.fit].mean(axis=0)

    @cached_property
    def auc_of_place(self) -> float:
        """Area under the ROC curve of the place of a token alone, which is `place`, in the held images."""
        held = self.inside[self.held]
        return float(roc_auc_score(held.ravel(), np.broadcast_to(self.place, held.shape).ravel()))

    @cached_property
    def auc_in_image_of_place(self) -> float:
        """The same in each held image, averaged."""
        return float(np.nanmean([_area_in_image(self.place, inside) for inside in self.inside[self.held]]))

    @cached_property
    def iou_of_place(self) -> float:
        """Intersection over union of the same, above the threshold that is best for the images that are fitted on."""
        known, asked = (np.broadcast_to(self.place, (len(half), len(self.place))) for half in (self.fit, self.held))
        return float(np.nanmean(_overlap(known, asked, self)))

    def shuffled(self, seed: int) -> "Masks":
        """The same with each image's mask replaced by another's: what is left is where objects usually are."""
        order = np.random.default_rng(seed).permutation(len(self.shares))
        return replace(self, shares=self.shares[order])

    def same_class(self, half: Int64[np.ndarray, " h"]) -> Bool[np.ndarray, "h h"]:
        """Which pairs of these images are of one class; none if the classes are not known."""
        if self.labels is None:
            return np.zeros((len(half), len(half)), bool)
        return self.labels[half, None] == self.labels[half]


def split_masks(
    shares: Float[Tensor, "n m"], *, seed: int, held: int = 0, labels: Int64[Tensor, "_"] | None = None
) -> Masks:
    """Divide images with objects into a half to fit on and a half to measure on, by np.random.default_rng(seed).

    The first `held` images, such as those of a picture, are among the measured ones. `labels` are the classes of the
    images. Raises ValueError for fewer than four images, shares outside 0..1, another number of labels, or a half
    without tokens on or beside an object.
    """
    values = shares.detach().cpu().double().numpy()
    count = len(values)
    if count < FEWEST_IMAGES or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"got the shares of {count} images, {_range(values)}; allowed are {FEWEST_IMAGES} or more images and 0 to 1"
        )
    if labels is not None and len(labels) != count:
        raise ValueError(f"got the shares of {count} images and {len(labels)} labels; they must agree")
    generator = np.random.default_rng(seed)
    order = generator.permutation(count)
    order = np.concatenate([order[order >= held], order[order < held]])
    fit, report = np.sort(order[: count // 2]), np.sort(order[count // 2 :])
    for what, rows in (("to fit on", fit), ("to measure on", report)):
        on = (values[rows] >= _ON).mean()
        if not 0 < on < 1:
            raise ValueError(
                f"of the {len(rows)} images {what}, {on:.0%} of the tokens are at least half object; there must be "
                "tokens on the object and beside it: take more images, or masks of another size"
            )
    counts, counts_of_all = (
        generator.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64) for n in (len(report), count)
    )
    return Masks(values, fit, report, counts, counts_of_all, None if labels is None else labels.cpu().numpy())


@dataclass(frozen=True, eq=False)
class ObjectSeparation:
    """How well tokens on the object separate from those beside it, on the half of the images that nothing saw.

    auc: area under the ROC curve of the first principal component. auc_best: of the best of the first three, number
    `component`, over the tokens of all images together. auc_in_image: of that component in each image (`in_images`, NaN
    where all or none of the tokens are on the object), averaged. probe: of a linear classifier of single tokens. iou:
    mean intersection over union of the mask and that component above a threshold. The level to compare with is that of
    the place alone, `Masks.auc_of_place`, `auc_in_image_of_place` and `iou_of_place`.

    auc_same_place and probe_same_place: areas over pairs of tokens at the same place, of the component that is best by
    this area, and of the probe; one half is chance. auc_same_class and probe_same_class: the same over pairs of images
    of one class, NaN if the classes are not known. silhouette: cosine, of all images, -1..1.
    """

    auc: Estimate
    auc_best: Estimate
    auc_in_image: Estimate
    auc_same_place: Estimate
    auc_same_class: Estimate
    probe: Estimate
    probe_same_place: Estimate
    probe_same_class: Estimate
    iou: Estimate
    silhouette: float
    component: int
    in_images: Float64[np.ndarray, " h"]
    masks: Masks
    resampled: dict[str, Float64[np.ndarray, " r"]]

    def of_image(self, image: int) -> float | None:
        """Area of that component in one held image; None if all or none of its tokens are on the object."""
        area = float(self.in_images[self.masks.held.tolist().index(image)])
        return None if np.isnan(area) else area

    def less(self, other: "ObjectSeparation", measure: str) -> Estimate:
        """One of its estimates, such as "auc_best", minus that of `other`, with the interval of pairs of images.

        Both must be of the same images and masks.
        """
        first, second = getattr(self, measure), getattr(other, measure)
        return _estimate(first.value - second.value, self.resampled[measure] - other.resampled[measure], first.count)


def object_separation(
    tokens: Float[Tensor, "n m d"],
    shares: Float[Tensor, "_ _"] | Masks,
    *,
    seed: int = 0,
    labels: Int64[Tensor, "_"] | None = None,
) -> ObjectSeparation:
    """Separation of the tokens on an object from those beside it: see `ObjectSeparation`.

    Takes any tokens: layers, guided features (Eq. 3) or alignment targets of `wb.target_tokens`. One half of the images
    gives the principal components, the component with the largest area under its ROC curve and its sign, the threshold
    with the largest intersection over union, and the probe (ridge regression on standardized tokens).

    Args:
        tokens: Tokens of images.
        shares: The share of each token that is object, as of `wb.object_shares`.
        seed: Seed of the halves and of the resampled images.
        labels: The classes of the images, such as ``features.true``, for the measures within a class.

    Returns:
        An ``ObjectSeparation``; ``auc``, ``auc_same_place``, ``probe``, ``iou`` and others have ``value``, ``low``,
        ``high`` (a 95 % bootstrap interval over images) and ``count`` (of images).

    Raises:
        ValueError: For tokens that are not finite, zero or all equal, other numbers of images or tokens, fewer than
            four images, and masks without tokens on or beside the object.

    Examples:
        >>> small = ["data.name=scenes", "data.size=32", "data.limit=100", "vae.name=identity", "backbone.patch=4"]
        >>> small += ["backbone.size=pico", "training.batch=8", "training.steps=4"]
        >>> run = wb.trained(wb.load_config("demo/plain", small), progress=lambda stage, done, total: None)
        >>> tokens, shares = wb.target_tokens("vae", run, range(20), times=[0.5])[0.5], wb.object_shares(run, range(20))
        >>> found = wb.object_separation(tokens, shares)
        >>> found.auc.count, found.auc.low <= found.auc.value <= found.auc.high
        (10, True)
    """
    masks = shares if isinstance(shares, Masks) else split_masks(shares, seed=seed, labels=labels)
    rows = _rows(tokens, masks)
    inside, held = masks.inside[masks.fit], masks.inside[masks.held]
    known, asked = _components(rows, masks)
    areas = [float(roc_auc_score(inside.ravel(), scores.ravel())) for scores in known]
    best, sign = _furthest(areas)
    alike = {"place": (None, None), "class": (masks.same_class(masks.fit), masks.same_class(masks.held))}
    own = {
        of: _furthest([_won(*place_pairs(scores, inside, fit)) for scores in known]) for of, (fit, _) in alike.items()
    }
    chosen, probe = sign * asked[best], _probe_scores(rows, masks)
    in_images = np.array([_area_in_image(*image) for image in zip(chosen, held, strict=True)])
    measured = {
        "auc": _area(image_pairs(_furthest(areas[:1])[1] * asked[0], held), masks),
        "auc_best": _area(image_pairs(chosen, held), masks),
        "auc_in_image": _mean(in_images, masks),
        "probe": _area(image_pairs(probe, held), masks),
        "iou": _mean(_overlap(sign * known[best], chosen, masks), masks),
    }
    for of, (component, turned) in own.items():
        measured[f"auc_same_{of}"] = _area(place_pairs(turned * asked[component], held, alike[of][1]), masks)
        measured[f"probe_same_{of}"] = _area(place_pairs(probe, held, alike[of][1]), masks)
    unit = unit_rows(rows.reshape(-1, rows.shape[2]))
    return ObjectSeparation(
        **{name: estimate for name, (estimate, _) in measured.items()},
        silhouette=cosine_silhouette(unit, masks.inside.ravel().astype(np.int64)),
        component=best + 1,
        in_images=in_images,
        masks=masks,
        resampled={name: sampled for name, (_, sampled) in measured.items()},
    )


def object_probe(tokens: Float[Tensor, "n m d"], masks: Masks) -> Estimate:
    """The probe of `object_separation` alone; with `Masks.shuffled` masks it shows what position alone gives."""
    scores = _probe_scores(_rows(tokens, masks), masks)
    return _area(image_pairs(scores, masks.inside[masks.held]), masks)[0]


@dataclass(frozen=True)
class ObjectDifference:
    """Where f_c - f_u, the direction of guidance, is large.

    share: of the sum of its lengths over tokens, what falls on the object; `area` is the object's share of the tokens,
    which is the chance level. ratio: mean length on the object over mean length beside it. ratio_same_place: the same
    at the same place of images with and without the object there, pooled over places (Mantel and Haenszel 1959). All
    are NaN if f_c = f_u.
    """

    share: Estimate
    ratio: Estimate
    ratio_same_place: Estimate
    area: float


def object_difference(
    f_u: Float[Tensor, "n m d"],
    f_c: Float[Tensor, "n m d"],
    shares: Float[Tensor, "_ _"] | Masks,
    *,
    seed: int = 0,
) -> ObjectDifference:
    """Share of |f_c - f_u| on the object, and its ratios to beside it, over all images; tokens count by their share.

    Nothing is fitted, so all images are measured. Raises ValueError as `object_separation`.
    """
    masks = shares if isinstance(shares, Masks) else split_masks(shares, seed=seed)
    for tokens in (f_u, f_c):
        _check_tokens(tokens, masks)
    lengths = torch.linalg.vector_norm(f_c.detach().cpu().double() - f_u.detach().cpu().double(), dim=2).numpy()
    if not np.isfinite(lengths).all():
        raise ValueError("f_c - f_u is not finite in every token")
    # All images once, then their resamples.
    counts = np.concatenate([np.ones((1, len(lengths))), masks.counts_of_all])
    on, off = masks.shares, 1 - masks.shares
    length_on, length_off, tokens_on, tokens_off = (counts @ of for of in (lengths * on, lengths * off, on, off))

    def estimate(values: Float64[np.ndarray, " r"]) -> Estimate:
        return _estimate(float(values[0]), values[1:], len(lengths))

    with np.errstate(invalid="ignore", divide="ignore"):
        total = length_on.sum(axis=1)
        ratio = total / tokens_on.sum(axis=1) / (length_off.sum(axis=1) / tokens_off.sum(axis=1))
        at_place = (length_on * tokens_off).sum(axis=1) / (length_off * tokens_on).sum(axis=1)
        share = total / (total + length_off.sum(axis=1))
    return ObjectDifference(estimate(share), estimate(ratio), estimate(at_place), float(on.mean()))


def image_pairs(
    scores: Float64[np.ndarray, "n m"], inside: Bool[np.ndarray, "n m"]
) -> tuple[Float64[np.ndarray, "n n"], Float64[np.ndarray, "n n"]]:
    """Pairs of a token on the object of image i and a token beside that of image j: those won, and all.

    A pair is won if the first has the larger score; ties count half. The sum of the first over that of the second is
    the area under the ROC curve (Mann and Whitney 1947), and a bootstrap over images only weighs these two tables.
    """
    of_image = np.nonzero(inside)[0]
    on, beside = scores[inside], [np.sort(row[~own]) for row, own in zip(scores, inside, strict=True)]
    wins = np.empty((len(scores), len(scores)))
    for other, sorted_scores in enumerate(beside):
        below = np.searchsorted(sorted_scores, on, "left") + np.searchsorted(sorted_scores, on, "right")
        wins[:, other] = np.bincount(of_image, below / 2, minlength=len(scores))
    return wins, np.outer(inside.sum(axis=1), (~inside).sum(axis=1)).astype(np.float64)


def place_pairs(
    scores: Float64[np.ndarray, "n m"], inside: Bool[np.ndarray, "n m"], alike: Bool[np.ndarray, "n n"] | None = None
) -> tuple[Float64[np.ndarray, "n n"], Float64[np.ndarray, "n n"]]:
    """The pairs of `image_pairs` whose tokens are at the same place, of images that are `alike`: those won, and all."""
    wins = np.zeros((len(scores), len(scores)))
    for place in range(scores.shape[1]):
        on, beside = np.flatnonzero(inside[:, place]), np.flatnonzero(~inside[:, place])
        less = scores[on, place][:, None] - scores[beside, place]
        wins[np.ix_(on, beside)] += (less > 0) + (less == 0) / 2
    pairs = inside.astype(np.float64) @ (~inside).T
    return (wins, pairs) if alike is None else (wins * alike, pairs * alike)


def _rows(tokens: Float[Tensor, "n m d"], masks: Masks) -> Float64[np.ndarray, "n m d"]:
    _check_tokens(tokens, masks)
    return finite_rows(tokens.flatten(0, 1)).reshape(*tokens.shape)


def _components(
    rows: Float64[np.ndarray, "n m d"], masks: Masks
) -> tuple[Float64[np.ndarray, "k f m"], Float64[np.ndarray, "k h m"]]:
    """The first principal components of the images that are fitted on, in these and in the held images."""
    fitted, held = (rows[half].reshape(-1, rows.shape[2]) for half in (masks.fit, masks.held))
    if not np.ptp(fitted, axis=0).any():
        raise ValueError("all tokens of the images to fit on are equal, so they have no principal components")
    with one_core():
        pca = PCA(min(_COMPONENTS, *fitted.shape), svd_solver="covariance_eigh").fit(fitted)
        known, asked = (
            pca.transform(of).T.reshape(-1, len(of) // rows.shape[1], rows.shape[1]) for of in (fitted, held)
        )
    return known, asked


def _furthest(areas: Sequence[float]) -> tuple[int, float]:
    """The area furthest from chance, and the sign that brings it above; one that is not defined is at chance."""
    above = np.nan_to_num(np.array(areas) - 0.5)
    best = int(np.abs(above).argmax())
    return best, -1.0 if above[best] < 0 else 1.0


def _won(wins: Float64[np.ndarray, "n n"], pairs: Float64[np.ndarray, "n n"]) -> float:
    """Share of the pairs that are won; NaN without pairs."""
    every = float(pairs.sum())
    return float(wins.sum()) / every if every else float("nan")


def _area(
    tables: tuple[Float64[np.ndarray, "h h"], Float64[np.ndarray, "h h"]], masks: Masks
) -> tuple[Estimate, Float64[np.ndarray, " r"]]:
    """Share of the pairs of the held images that are won, and that of each resample."""
    won, every = (np.einsum("ri,ri->r", masks.counts @ table, masks.counts) for table in tables)
    with np.errstate(invalid="ignore"):  # a resample without tokens beside an object
        sampled = won / every
    return _estimate(_won(*tables), sampled, len(masks.held)), sampled


def _probe_scores(rows: Float64[np.ndarray, "n m d"], masks: Masks) -> Float64[np.ndarray, "h m"]:
    """Scores of a linear classifier of tokens in the held images."""
    fitted, asked = (rows[half].reshape(-1, rows.shape[2]) for half in (masks.fit, masks.held))
    scaler = StandardScaler().fit(fitted)
    classifier = RidgeClassifier(alpha=_PENALTY * len(fitted), class_weight="balanced")
    with one_core():
        classifier.fit(scaler.transform(fitted), masks.inside[masks.fit].ravel())
        return classifier.decision_function(scaler.transform(asked)).reshape(len(masks.held), -1)


def _area_in_image(scores: Float64[np.ndarray, " m"], inside: Bool[np.ndarray, " m"]) -> float:
    if inside.all() or not inside.any():
        return float("nan")
    wins, pairs = image_pairs(scores[None], inside[None])
    return float(wins.item() / pairs.item())


def _overlap(
    known: Float64[np.ndarray, "f m"], asked: Float64[np.ndarray, "h m"], masks: Masks
) -> Float64[np.ndarray, " h"]:
    """Intersection over union of each held image, above the threshold that is best for the others."""
    thresholds = np.percentile(known, np.linspace(0, 100, _THRESHOLDS + 2)[:-1])
    means = [np.nanmean(_iou(known >= threshold, masks.inside[masks.fit])) for threshold in thresholds]
    return _iou(asked >= thresholds[int(np.argmax(means))], masks.inside[masks.held])


def _mean(each: Float64[np.ndarray, " h"], masks: Masks) -> tuple[Estimate, Float64[np.ndarray, " r"]]:
    """Mean over the held images whose value is not NaN, and that of each resample."""
    defined = ~np.isnan(each)
    if not defined.any():
        return Estimate(float("nan"), float("nan"), float("nan"), 0), np.full(len(masks.counts), np.nan)
    with np.errstate(invalid="ignore"):
        sampled = masks.counts[:, defined] @ each[defined] / masks.counts[:, defined].sum(axis=1)
    return _estimate(float(each[defined].mean()), sampled, int(defined.sum())), sampled


def _iou(chosen: Bool[np.ndarray, "n m"], inside: Bool[np.ndarray, "n m"]) -> Float64[np.ndarray, " n"]:
    """Intersection over union of each image; NaN for an image without a token on its object."""
    with np.errstate(invalid="ignore", divide="ignore"):
        overlap = (chosen & inside).sum(axis=1) / (chosen | inside).sum(axis=1)
    return np.where(inside.any(axis=1), overlap, np.nan)


def _estimate(value: float, sampled: Float64[np.ndarray, " r"], count: int) -> Estimate:
    """The value with the 2.5th and 97.5th percentile of its resamples."""
    known = sampled[np.isfinite(sampled)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), count)


def _check_tokens(tokens: Float[Tensor, "n m d"], masks: Masks) -> None:
    if tuple(tokens.shape[:2]) != masks.shares.shape:
        (n, m), (images, own) = tokens.shape[:2], masks.shares.shape
        raise ValueError(f"got {n} images of {m} tokens and masks of {images} images of {own} tokens; they must agree")


def _range(values: np.ndarray) -> str:
    return f"{values.min():g} to {values.max():g}" if values.size else "none"
