"""Scores of a run, each stored with how it was measured."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.config import Config, DataConfig, SamplingConfig
from workbench.data.images import QUANTISATION, Images, load_images
from workbench.data.latents import Latents
from workbench.diffusion.guidance import Guidance
from workbench.diffusion.paths import get_path
from workbench.diffusion.sampling import evaluations
from workbench.evaluation.detectors import Detector, load_clf64
from workbench.evaluation.frechet import frechet_from_features
from workbench.evaluation.generate import generate
from workbench.evaluation.kernel import kid
from workbench.evaluation.probe import linear_probe
from workbench.evaluation.statistics import class_agreement
from workbench.features.extract import extract
from workbench.runs.models import check_latents_of, load_backbone
from workbench.runs.store import Run, machine

_REFERENCE_COUNT = 10_000  # real images of each split, at most
_METRICS = ("fd-clf64", "kid-clf64", "class-agreement")
_PROBE_SPLITS = "50 % fit, 20 % choose C, 30 % report"


@dataclass(frozen=True)
class Reference:
    """Detector features of real training images, and as many real test images as floors are computed from."""

    train: Float[Tensor, "n d"]
    test: Float[Tensor, "m d"]
    content: str


def score(
    run: Run, step: int, settings: SamplingConfig, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """FD-clf64, KID-clf64 and, on Fashion-MNIST, class agreement of ``run`` at ``step``; computed once, then read back.

    The floor beside FD and KID is the same measure of real test images, as many if there are so many. Appends to
    ``results.jsonl``.
    """
    wanted = {"step": step, **_described(settings)}
    known = {r["metric"]: r for r in run.results if all(r.get(key) == value for key, value in wanted.items())}
    expected = [m for m in _METRICS if m != "class-agreement" or run.config.data.name == "fashion-mnist"]
    if known.keys() >= set(expected):  # a killed process may have written some of them
        return [known[metric] for metric in expected]
    detector = load_clf64()
    reference = reference_features(run.config.data)
    samples = generate(run, step, settings, progress)
    detected = detector(samples.images)
    how = {**wanted, **_how(run.config, settings, detector, reference)}
    floor = reference.test[: settings.count]
    how["n_floor"] = len(floor)
    distance = frechet_from_features(detected.features, reference.train, small_ok=True)
    records = [
        {
            "metric": "fd-clf64",
            "value": distance.value,
            "floor": frechet_from_features(floor, reference.train, small_ok=True).value,
            "mean_term": distance.mean_term,
            "covariance_term": distance.covariance_term,
            "small": distance.small,  # fewer images than features: an indication, not a score
            **how,
        },
        {
            "metric": "kid-clf64",
            "value": kid(detected.features, reference.train, seed=settings.seed).value,
            "floor": kid(floor, reference.train, seed=settings.seed).value,
            **how,
        },
    ]
    if run.config.data.name == "fashion-mnist":  # whose classes the detector's are
        agreement = class_agreement(detected.logits, samples.labels)
        found = {"value": agreement.value, "low": agreement.low, "high": agreement.high}
        records.append({"metric": "class-agreement", **found, **how})
    for record in records:
        if record["metric"] not in known:
            run.append("results.jsonl", record)
    return records


def probe_layers(
    run: Run, latents: Latents, step: int, *, layers: range, t: float, count: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Linear-probe accuracy of each layer's mean token with the null label, at time ``t``; appended to the results."""
    wanted = {"metric": "probe", "step": step, "t": t, "count": count, "probe_seed": seed}
    known = {r["layer"]: r for r in run.results if all(r.get(key) == value for key, value in wanted.items())}
    if known.keys() >= set(layers):
        return [known[layer] for layer in layers]
    check_latents_of(run, latents)
    backbone = load_backbone(run, step)
    path = get_path(run.config.diffusion.path)
    features = extract(backbone, latents, range(count), list(layers), t, seed=seed, conditional=False, path=path)
    records = []
    for layer in layers:
        probe = linear_probe(features.f_u[layer].mean(dim=1), torch.from_numpy(latents.labels[:count]), seed=seed)
        record = {**wanted, "layer": layer, "value": probe.accuracy, "low": probe.low, "high": probe.high}
        record |= {"label": "null", "weights": "ema", "pooling": "mean token", "splits": _PROBE_SPLITS}
        record |= {"n_test": probe.count, "train_seed": run.config.training.seed}
        if layer not in known:
            run.append("results.jsonl", record)
        records.append(record)
    return records


def reference_features(config: DataConfig) -> Reference:
    """The shipped detector's features of the first 10,000 training and all test images of a data set."""
    return _reference(config)


@lru_cache(maxsize=2)
def _reference(config: DataConfig) -> Reference:
    detector = load_clf64()

    def features(images: Images) -> Tensor:
        chosen = np.arange(min(_REFERENCE_COUNT, len(images)))
        parts = [chosen[start : start + 500] for start in range(0, len(chosen), 500)]
        return torch.cat([detector(images.batch(part)).features for part in parts])

    train, test = load_images(config, "train"), load_images(config, "test")
    return Reference(features(train), features(test), train.content)


def _described(settings: SamplingConfig) -> dict[str, Any]:
    settings_ = asdict(settings)
    return {
        "n_generated": settings_.pop("count"),
        "sampler_steps": settings_.pop("steps"),
        "sample_seed": settings_.pop("seed"),
        **settings_,
    }


def _how(config: Config, settings: SamplingConfig, detector: Detector, reference: Reference) -> dict[str, Any]:
    return {
        "detector": detector.name,
        "detector_hash": detector.hash,
        "resize": detector.resize,
        "quantisation": QUANTISATION,
        "n_reference": len(reference.train),
        "reference": reference.content,
        "label_scheme": "balanced: class i modulo the number of classes",
        "nfe": evaluations(settings.sampler, settings.steps, Guidance.of(settings), settings.last_step, settings.shift),
        "ema": config.training.ema,
        "train_seed": config.training.seed,
        "dtype": "float32",
        "machine": machine(),
    }
