from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.evaluation.frechet import frechet_distance, statistics
from workbench.evaluation.manifold import density_coverage, precision_recall
from workbench.evaluation.reference import Reference, Seen
from workbench.evaluation.scores import class_agreement
from workbench.evaluation.scores.base import Measurement, kinds, measure
from workbench.evaluation.scores.kid import kid
from workbench.evaluation.statistics import sampling_deviation, wilson

CLASSES = 4


def seen(n, seed, *, shift=0.0, d=6, spatial=9):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    features = torch.randn(n, d, generator=generator) + shift
    features[:, 0] += 3 * labels
    logits = -(features[:, :1] - 3 * torch.arange(CLASSES)).square()
    maps = statistics(torch.randn(n, spatial, generator=generator)) if spatial else None
    return Seen(statistics(features), maps, features, logits, labels)


def reference(**options):
    return Reference(seen(600, 0, **options), seen(300, 1, **options), None, "content", "gaussians")


def test_every_score_is_that_of_the_single_measure():
    real, generated = reference(), seen(200, 2, shift=0.3)
    found = measure(generated, real, seed=0)
    assert tuple(sorted(found)) == tuple(sorted(kinds(real, 200)))
    rows, train = generated.features, real.train.features
    distance = frechet_distance(statistics(rows), statistics(train))
    assert found["fd"]["value"] == pytest.approx(distance.value, rel=1e-9)
    assert found["fd"]["mean_term"] + found["fd"]["covariance_term"] == pytest.approx(found["fd"]["value"])
    assert found["fd"]["low"] < found["fd"]["value"] < found["fd"]["high"]
    assert found["kid"]["value"] == kid(rows, train, seed=0).value
    pair, balls = precision_recall(rows, train), density_coverage(rows, train)
    assert (found["precision"]["value"], found["recall"]["value"]) == (pair.precision, pair.recall)
    assert (found["density"]["value"], found["coverage"]["value"]) == (balls.density, balls.coverage)
    interval = wilson(round(pair.precision * 200), 200)
    assert (found["precision"]["low"], found["precision"]["high"]) == (interval.low, interval.high)
    assert found["sfd"]["value"] == pytest.approx(frechet_distance(generated.spatial, real.train.spatial).value)


def test_kinds_follow_from_what_there_is():
    generated = seen(60, 2, spatial=0)
    bare = Reference(replace(seen(600, 0, spatial=0), logits=None, labels=None), None, None, "content", "file")
    found = measure(replace(generated, logits=None), bare, seed=0)
    assert set(found) == set(kinds(bare, 60)) == {"fd", "kid", "precision", "recall", "density", "coverage"}
    assert "by_class" not in found["recall"] and "floor" not in found["fd"]
    # FD at infinite N starts at a tenth of the images, which must be twice the dimensions.
    assert "fd-inf" not in kinds(reference(), 119) and "fd-inf" in kinds(reference(), 120)


def test_floors_are_the_scores_of_as_many_real_images():
    real = reference()
    found = measure(seen(200, 2, shift=1.0), real, seed=0)
    held_out = real.test.features[:200]
    assert found["fd"]["floor"] == pytest.approx(
        frechet_distance(statistics(held_out), statistics(real.train.features)).value
    )
    assert found["precision"]["floor"] == precision_recall(held_out, real.train.features).precision
    assert found["fd"]["value"] > 3 * found["fd"]["floor"]


def test_a_model_that_copies_is_seen():
    real = reference()
    copies = replace(seen(200, 2), features=real.train.features[:200], statistics=statistics(real.train.features[:200]))
    found = measure(copies, real, seed=0)["memorisation"]
    assert found["copies"] == 200 and found["value"] == 1 and found["p"] < 1e-20
    honest = measure(seen(200, 3), real, seed=0)["memorisation"]
    assert honest["copies"] == 0 and abs(honest["value"] - 0.5) < 0.1


def test_lost_classes_show_in_recall_by_class():
    real, generated = reference(), seen(400, 2)
    kept = generated.labels < 2
    half = Seen(statistics(generated.features[kept]), None, generated.features[kept], None, generated.labels[kept])
    recall = measure(half, real, seed=0)["recall"]
    assert min(recall["by_class"][:2]) > 0.7 and recall["by_class"][3] < 0.05
    shares = [float((real.train.labels == label).double().mean()) for label in range(CLASSES)]
    assert recall["value"] == pytest.approx(np.dot(shares, recall["by_class"]))


def test_agreement_by_class():
    generated = seen(400, 2)
    swapped = replace(generated, labels=torch.where(generated.labels == 3, 0, generated.labels))
    found = class_agreement.measure(Measurement(swapped, reference()))
    assert found["by_class"][1] > 0.8 and 0.3 < found["by_class"][0] < 0.6
    assert found["low"] < found["value"] < found["high"]


def test_images_of_the_reference_itself_are_refused():
    real = reference()
    with pytest.raises(ValueError, match="reference itself"):
        measure(real.train, real, seed=0)


def test_too_few_images_are_refused_or_marked():
    real, few = reference(d=40), seen(79, 2, d=40)
    with pytest.raises(ValueError, match="--small-ok"):
        measure(few, real, seed=0)
    assert measure(few, real, seed=0, small_ok=True)["fd"]["small"]
    assert not measure(seen(80, 2, d=40), real, seed=0)["fd"]["small"]
    # Fewer than dimensions: the nuclear norm over all rows of both sets gives the same number.
    tiny = seen(30, 2, d=40)
    expected = frechet_distance(tiny.statistics, real.train.statistics, small_ok=True).value
    assert measure(tiny, real, seed=0, small_ok=True)["fd"]["value"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("stratified", [True, False])
def test_the_deviation_of_halves_is_that_of_fresh_sets(stratified):
    real = statistics(seen(4000, 0).features)

    def distance(rows):
        return frechet_distance(statistics(rows), real).value

    # Classes drawn equally often, or as they come: 800 of 4,000 rows.
    sets = [seen(800 if stratified else 4000, seed, shift=0.5) for seed in range(1, 101)]
    drawn = np.random.default_rng(0)
    sets = [(s.features, s.labels.numpy()) for s in sets]
    if not stratified:
        sets = [(f[drawn.choice(4000, 800, replace=False)], np.zeros(800, int)) for f, _ in sets]
    spread = np.std([distance(features) for features, _ in sets])
    estimates = [sampling_deviation(lambda chosen, f=f: distance(f[chosen]), y, seed=0) for f, y in sets[:10]]
    assert np.mean(estimates) == pytest.approx(spread, rel=0.25)
    with pytest.raises(ValueError, match="at least 4 rows"):
        sampling_deviation(lambda chosen: 0.0, np.zeros(3, int), seed=0)


def test_the_deviation_of_a_mean_by_hand():
    # Of 0, 0, 1, 1 the means of halves are 0, 1/2 (four times) and 1: variance 1/12, which is s^2 / n = (1/3) / 4.
    values = np.array([0.0, 0.0, 1.0, 1.0])
    free, strata = np.zeros(4, int), np.array([0, 0, 1, 1])
    found = sampling_deviation(lambda chosen: values[chosen].mean(), free, repeats=20_000, seed=0)
    assert found == pytest.approx(np.sqrt(1 / 12), rel=0.02)
    # One of each stratum: the mean is 1/2 whichever it is.
    assert sampling_deviation(lambda chosen: values[chosen].mean(), strata, seed=0) == 0
