"""Scores of a run or of a file of images, with a record of how each was measured."""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from workbench.config import DataConfig, SamplingConfig, refuse_unknown
from workbench.data.encoders import ENCODERS
from workbench.data.ranks import Ranks
from workbench.diffusion.precision import chosen_precision
from workbench.evaluation.archives import read_samples
from workbench.evaluation.detectors.base import Detector, load_detector
from workbench.evaluation.frechet import check_rows, frechet_distance
from workbench.evaluation.generate import Samples, check_sampling, described, generate_share, generated
from workbench.evaluation.metrics import Metric, default_detector, metrics, stored_names
from workbench.evaluation.probe import linear_probe
from workbench.evaluation.reference import (
    Reference,
    Seen,
    published_reference,
    reference_of_data,
    reference_of_file,
    see,
)
from workbench.evaluation.scores.base import NORMAL, Measurement, kinds, measure, strata
from workbench.evaluation.statistics import sampling_deviation
from workbench.features.extract import extract
from workbench.files import to_json
from workbench.runs.held import held
from workbench.runs.store import Run, find_teacher, machine
from workbench.runs.weak import WeakLike, check_weak, find_weak

_BATCH = 500
_FEWEST_PAIRS = 4
_PROBE_SPLITS = "50 % fit, 20 % choose C, 30 % report"

Progress = Callable[[str, int, int], None]  # stage, done, total
Precision = Literal["no", "bf16", "auto"]
_ALONE = Ranks()


def score(
    run: Run,
    step: int,
    settings: SamplingConfig,
    *,
    detector: str | None = None,
    detector_precision: Precision = "no",
    reference: Path | Literal["data"] | None = None,
    small_ok: bool = False,
    force: bool = False,
    processes: int = 1,
    weak: WeakLike = None,
    ranks: Ranks = _ALONE,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Score the images that a run generates at a step, with one detector.

    They are compared with the training images of the run's data set (with floors from its test images), or with a
    reference file. The scores are those of ``metrics.metrics()``; class agreement needs a detector with the classes of
    the run. Scores are computed once and stored in ``results.jsonl``. The checkpoint is protected while it is needed,
    even if the run trains on and deletes older checkpoints.

    Args:
        run: The run.
        step: Step of the checkpoint.
        settings: Sampler, steps, guidance, count, labels and seed; the run's own are ``run.config.sampling``.
        detector: "clf64", "clf64-scenes", "effnet-lite0", "randomconv", "pixels-pca64", "inception-2015" or "dinov2",
            or another one by its registered name or module path. By default the classifier of the run's kind of images.
        detector_precision: "no" (float32 without TF32), "bf16", or "auto", bfloat16 where this machine multiplies
            matrices in it. Recorded with the scores, and scores of another precision are other scores.
        reference: A reference .npz file in ADM's format, or "data", the training images of the run. By default also
            the latter, but for Inception and a run of ImageNet ADM's file if it is in ``$WORKBENCH_WEIGHTS``.
        small_ok: Allow, and mark, fewer images than twice the detector's dimensions.
        force: Allow, and mark, a detector that the run or its teacher was trained with.
        processes: Number of processes that generate; they are distributed over the GPUs.
        weak: Weak model to guide against instead of the null label, as of `wb.samples`: v_weak + w (v - v_weak), with w
            the guidance scale. Without guidance it changes nothing.
        ranks: The processes of a launcher that all call this function (`joined_ranks`); each generates its share, and
            the main one scores.
        progress: Called with (stage, done, total).

    Returns:
        A record for each score. All have ``metric`` (such as "fd-clf64"), ``value``, ``step``, ``n_generated`` and how
        it was measured (``detector``, sampler, guidance, seeds, reference). Some have ``low`` and ``high``, a 95 %
        interval over the choice of images, and ``floor``, the score of as many real test images. ``supervised`` and
        ``small`` mark what `force` and `small_ok` allowed.

    Raises:
        ValueError: For a detector that the run was trained with, too few images, non-finite scores, a step without a
            checkpoint, sampling options that this run does not support, and a weak model that does not fit or is the
            run itself.

    Examples:
        >>> run = wb.zoo("guided")
        >>> scores = wb.score(run, 6000, run.config.sampling)  # these were shipped with the run
        >>> scores[0]["metric"], round(scores[0]["value"], 2), scores[0]["n_generated"]
        ('fd-clf64', 1.84, 2000)
    """
    against = None if weak is None else find_weak(weak, run)
    check_sampling(run, settings, processes, against)
    if against is not None:
        check_weak(run, [step], against)
    if not ranks.main:
        if ranks.of_main(None):
            generate_share(run, step, settings, ranks, weak=against)
        return []
    detector = detector or default_detector(run.config.data.name)
    stored_names(detector)  # refuses scores that cannot be used before anything is computed
    precision = chosen_precision(detector_precision)
    extractor = _detector(detector, precision)
    _check_count(settings.count, extractor, small_ok)
    supervised = _check_supervised(run, extractor, detector, force)
    stored = any(record.get("step") == step for record in run.results)  # perhaps of a checkpoint that was deleted
    if not stored:
        run.checkpoint(step)
    if not (os.access(run.folder, os.W_OK) or stored):
        raise ValueError(f"{run.folder} cannot be written, but scores are stored there: copy the run and score that")
    described(run, step, settings, against)  # refuses wrong settings before the reference is detected
    file = published_reference(run, detector) if reference is None else None if reference == "data" else reference
    exists = step in {checkpoint.step for checkpoint in run.checkpoints}  # scores of a deleted one may be stored
    with held(run, step) if exists else nullcontext(run) as kept:
        real = _reference(run.config.data, extractor, file, run.folder.parent, progress)
        how = {"step": step, **described(run, step, settings, against), **_how(extractor, real, precision)}
        how |= {"supervised": True} if supervised else {}
        expected = _metrics(extractor, real, settings.count, run.latents["classes"])
        known = {r["metric"]: r for r in run.results if all(r.get(key) == value for key, value in how.items())}
        if known.keys() >= set(expected):  # a killed process may have written only some
            ranks.of_main(False)
            return [known[metric] for metric in expected]
        _check_spatial(settings.count, real, small_ok)
        stage = _staged(progress, "generate")
        if ranks.of_main(True) and ranks.count > 1:
            generate_share(kept, step, settings, ranks, stage and _of_all(stage, ranks.count), against)
        samples = generated(kept, step, settings, stage, processes, against)
    counted = _counted(progress, "detect", len(samples))
    seen = see(samples.batches(_BATCH), extractor, labels=samples.labels, progress=counted)
    records = _records(seen, real, extractor, expected, seed=settings.seed, small_ok=small_ok)
    records = [{**record, **how, **_extras(real, len(samples))} for record in records]
    for record in records:
        if record["metric"] not in known:
            run.append("results.jsonl", record)
    return records


def score_file(
    file: Path,
    against: DataConfig | Path,
    root: Path,
    *,
    detector: str = "clf64",
    detector_precision: Precision = "no",
    seed: int = 0,
    small_ok: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Score the images in an .npz or .npy file of any program, against a data set or a reference file.

    Features of data sets are cached in ``root``. Labels in the file are the classes that the images were generated
    for. Raises ValueError as ``archives.read_samples`` and ``score``.
    """
    stored_names(detector)
    precision = chosen_precision(detector_precision)
    samples, extractor = read_samples(file), _detector(detector, precision)
    _check_count(len(samples), extractor, small_ok)
    data, path = (None, against) if isinstance(against, Path) else (against, None)
    real = _reference(data, extractor, path, root, progress)
    if samples.content == real.content:
        raise ValueError(f"{file} is the reference itself, so every distance would be 0")
    count = len(samples)
    counted = _counted(progress, "detect", count)
    seen = see(samples.batches(_BATCH), extractor, labels=samples.labels, progress=counted)
    if samples.statistics is not None and extractor.name == "inception-2015":  # ADM's evaluator uses the file's
        spatial = samples.spatial or seen.spatial
        seen = replace(seen, statistics=samples.statistics, spatial=spatial)
    classes = extractor.classes if data is not None and samples.labels is not None else None
    expected = _metrics(extractor, real, count, list(classes or ()))
    how = {"n_generated": count, "samples": samples.content, "sample_seed": seed}
    how |= _how(extractor, real, precision)
    records = _records(seen, real, extractor, expected, seed=seed, small_ok=small_ok)
    return [{**record, **how, **_extras(real, count)} for record in records]


def score_pairs(
    run: Run,
    before: Samples,
    after: Samples,
    *,
    scores: Sequence[str] = ("fd", "class-agreement"),
    detector: str | None = None,
    seed: int = 0,
    small_ok: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Scores of two sets of images of ``run`` from the same noise, and of their difference after - before.

    Image i of both sets has the same noise and label, so halves of the rows are drawn jointly (``sampling_deviation``):
    what the noise does to both cancels in the interval of the difference. Nothing is stored. A record has ``metric``,
    ``before`` and ``after`` (as of `measure`), ``difference`` with ``low`` and ``high``, its 95 % interval, and how it
    was measured. Kinds that need what the images or the detector lack are left out. Raises ValueError as `score`.
    """
    detector = detector or default_detector(run.config.data.name)
    names, table = stored_names(detector), metrics()
    for kind in scores:
        refuse_unknown("kind of score", kind, names)
    extractor, count = _detector(detector), len(before.images)
    _check_count(count, extractor, small_ok)
    _check_supervised(run, extractor, detector, force)
    if count < _FEWEST_PAIRS or len(after.images) != count or not torch.equal(before.labels, after.labels):
        raise ValueError(
            f"got {count} and {len(after.images)} images; allowed are {_FEWEST_PAIRS} or more pairs of the same labels"
        )
    real = _reference(run.config.data, extractor, None, run.folder.parent, progress)
    known = extractor.classes is not None and list(extractor.classes) == run.latents["classes"]
    chosen = [kind for kind in kinds(real, count, classes=known) if kind in scores]
    seen = []
    for number, samples in enumerate((before, after)):
        counted = _counted(progress, f"detect {('before', 'after')[number]}", count)
        batches = samples.images.split(_BATCH)
        seen.append(see(batches, extractor, labels=samples.labels, progress=counted).reduced(real.basis))
    records = []
    for kind in chosen:
        pair = [Measurement(one, real, seed, small_ok).score(table[kind]) for one in seen]

        def difference(rows: np.ndarray, kind: str = kind) -> float:
            first, second = (_value(table[kind], Measurement(one.subset(rows), real, seed, True)) for one in seen)
            return second - first

        value = pair[1]["value"] - pair[0]["value"]
        reach = NORMAL * sampling_deviation(difference, strata(seen[0]), seed=seed)
        record = {"metric": names[kind], "before": pair[0], "after": pair[1]}
        record |= {"difference": value, "low": value - reach, "high": value + reach}
        to_json(record, names[kind])  # refuses numbers that are not finite
        records.append({**record, "n_generated": count, **_how(extractor, real), **_extras(real, count)})
    return records


def supervisors(run: Run) -> set[str]:
    """Names of the pretrained encoders used to train a run, its teacher, the teacher's teacher, and so on.

    A teacher that is not found is ignored.
    """
    options = run.config.objective.options
    named = {value for value in options.values() if value in ENCODERS}
    if run.provenance.get("origin", {}).get("family") == "repa":
        named.add("dinov2-b")  # all that is known of REPA's published checkpoints
    if options.get("teacher") is None:
        return named
    try:
        return named | supervisors(find_teacher(run.config, run.folder.parent))
    except ValueError:
        return named


def probe_layers(run: Run, step: int, *, layers: range, t: float, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Linear-probe accuracy of each layer's mean token with the null label, at time ``t``; stored with the results."""
    wanted = {"metric": "probe", "step": step, "t": t, "count": count, "probe_seed": seed}
    known = {r["layer"]: r for r in run.results if all(r.get(key) == value for key, value in wanted.items())}
    if known.keys() >= set(layers):
        return [known[layer] for layer in layers]
    features = extract(
        run, count, layers, (t,), step=step, labels=("null",), pooling="mean", seed=seed, root=run.folder.parent
    )
    records = []
    for layer in layers:
        probe = linear_probe(features.read(layer, t), features.true, seed=seed)
        record = {**wanted, "layer": layer, "value": probe.accuracy, "low": probe.low, "high": probe.high}
        record |= {"label": "null", "weights": "ema", "pooling": "mean token", "splits": _PROBE_SPLITS}
        record |= {"n_test": probe.count, "train_seed": run.config.training.seed}
        if layer not in known:
            run.append("results.jsonl", record)
        records.append(record)
    return records


def _value(metric: Metric, of: Measurement) -> float:
    if metric.kind == "fd":  # without the interval of each half, which takes 20 times as long
        return frechet_distance(of.generated.statistics, of.reference.train.statistics, small_ok=True).value
    return of.score(metric)["value"]


def _check_supervised(run: Run, extractor: Detector, detector: str, force: bool) -> bool:
    """Whether a run or its teacher was trained with a detector; ValueError if so, unless ``force``."""
    supervised = extractor.encoder is not None and any(name.startswith(extractor.encoder) for name in supervisors(run))
    if supervised and not force:
        raise ValueError(
            f"run {run.name} or its teacher was trained with {detector}, so its scores would be biased: choose another "
            f"detector, or allow and mark it with --force"
        )
    return supervised


def _metrics(extractor: Detector, real: Reference, count: int, classes: list[str]) -> list[str]:
    known = extractor.classes is not None and list(extractor.classes) == classes
    names = stored_names(extractor.name)
    return [names[kind] for kind in kinds(real, count, classes=known)]


def _records(
    generated: Seen, real: Reference, extractor: Detector, expected: list[str], *, seed: int, small_ok: bool
) -> list[dict[str, Any]]:
    generated = generated.reduced(real.basis)
    names = stored_names(extractor.name)
    scores = measure(generated, real, seed=seed, small_ok=small_ok, classes=names["class-agreement"] in expected)
    named = {names[kind]: score for kind, score in scores.items()}
    for metric in expected:
        to_json(named[metric], metric)  # refuses non-finite scores before any is stored or shown
    return [{"metric": metric, **named[metric]} for metric in expected]


def _check_count(count: int, extractor: Detector, small_ok: bool) -> None:
    """Raise ValueError for too few images before any is detected, if the detector's dimensions are known."""
    if count < 2:
        raise ValueError(f"got {count} images; a score needs at least 2")
    dimensions = extractor.reduction or extractor.dimensions
    if dimensions:
        check_rows(count, dimensions, small_ok)


def _check_spatial(count: int, real: Reference, small_ok: bool) -> None:
    """ValueError for too few images for the Frechet distance of spatial features, before any are generated."""
    if real.train.spatial is not None:
        check_rows(count, len(real.train.spatial.mean), small_ok, "the spatial Frechet distance")


@lru_cache(maxsize=2)
def _detector(name: str, precision: Literal["no", "bf16"] = "no") -> Detector:
    return load_detector(name, "cuda" if torch.cuda.is_available() else "cpu", precision)


# Kept in memory, as several steps and runs are often scored against the same reference.
_references: dict[tuple[Any, ...], Reference] = {}


def _reference(
    data: DataConfig | None, extractor: Detector, file: Path | None, root: Path, progress: Progress | None
) -> Reference:
    stage = _staged(progress, "reference")
    if file is not None:
        return reference_of_file(file, extractor, stage)
    assert data is not None
    key = (data, extractor.hash)
    if key not in _references:
        _references.clear()
        _references[key] = reference_of_data(data, extractor, root / ".references", stage)
    return _references[key]


def _how(extractor: Detector, real: Reference, precision: str = "no") -> dict[str, Any]:
    return {
        **({} if precision == "no" else {"detector_precision": precision}),  # as older scores, which have none
        "detector": extractor.name,
        "detector_hash": extractor.hash,
        "resize": extractor.resize,
        "reduction": extractor.reduction,
        "n_reference": real.train.statistics.count,
        "reference": real.content,
    }


def _extras(real: Reference, count: int) -> dict[str, Any]:
    """Further entries of a record that are not part of the protocol."""
    floor = {} if real.test is None else {"n_floor": min(count, len(real.test.features))}
    explained = {} if real.basis is None else {"explained": real.basis.explained}
    return {"reference_origin": real.origin, **floor, **explained, "dtype": "float32", "machine": machine()}


def _staged(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(stage, done, total)


def _of_all(progress: Callable[[int, int], None], count: int) -> Callable[[int, int], None]:
    """Progress of all of ``count`` processes, from that of one."""
    return lambda done, total: progress(min(done * count, total), total)


def _counted(progress: Progress | None, stage: str, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(stage, done, total)
