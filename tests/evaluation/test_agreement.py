"""Our scores beside torch-fidelity's, on the same images through one extractor registered there."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import KEY_METRIC_FID
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL

from workbench.evaluation.frechet import Moments, frechet_distance, frechet_from_features
from workbench.evaluation.manifold import precision_recall
from workbench.evaluation.scores.is_ import inception_score
from workbench.evaluation.scores.kid import squared_discrepancy

NAME = "random-projection"
WIDTH = 48
GENERATED, REAL = 700, 500
SUBSETS, SUBSET_SIZE, SEED = 6, 120, 2020


class RandomProjection(FeatureExtractorBase):
    """uint8 images 3 x 8 x 8 to features (float64 and float32) and logits, by fixed random matrices."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)
        generator = torch.Generator().manual_seed(0)
        self.projection = torch.randn(192, WIDTH, generator=generator, dtype=torch.float64) / 40
        self.head = torch.randn(WIDTH, 10, generator=generator, dtype=torch.float64) / 2

    @staticmethod
    def get_provided_features_list():
        return "double", "single", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return {"isc": "logits", "fid": "double", "kid": "double", "prc": "single"}[metric]

    @staticmethod
    def can_be_compiled():
        return False

    @staticmethod
    def get_dummy_input_for_compile():
        return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)

    def forward(self, images):
        # Sums of products of float64 numbers depend on the batch only in their last digits.
        features = torch.relu(images.flatten(1).double() @ self.projection / 10)
        layers = {"double": features, "single": features.float(), "logits": features @ self.head}
        return tuple(layers[name] for name in self.features_list)


class Stored(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def pictures(n, low, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, 256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def images():
    return pictures(GENERATED, 20, seed=0), pictures(REAL, 0, seed=1)


@pytest.fixture(scope="module")
def theirs(images):
    register_feature_extractor(NAME, RandomProjection)
    return calculate_metrics(
        input1=Stored(images[0]),
        input2=Stored(images[1]),
        feature_extractor=NAME,
        fid=True,
        kid=True,
        prc=True,
        isc=True,
        isc_splits=4,
        samples_shuffle=False,
        kid_subsets=SUBSETS,
        kid_subset_size=SUBSET_SIZE,
        rng_seed=SEED,
        batch_size=64,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )


@pytest.fixture(scope="module")
def ours(images):
    extractor = RandomProjection(NAME, ["double", "single", "logits"])
    return [extractor.convert_features_tuple_to_dict(extractor(part)) for part in images]


def test_frechet_distance_to_a_millionth(theirs, ours):
    expected = theirs[KEY_METRIC_FID]
    assert expected > 0.1
    assert frechet_from_features(ours[0]["double"], ours[1]["double"]).value == pytest.approx(expected, rel=1e-6)


def test_streamed_frechet_distance_to_a_millionth(theirs, ours):
    parts = []
    for layers in ours:
        moments = Moments.none(WIDTH)
        for batch in layers["double"].split(64):
            moments = moments.add(batch)
        parts.append(moments.statistics())
    assert frechet_distance(*parts).value == pytest.approx(theirs[KEY_METRIC_FID], rel=1e-6)


def test_kernel_distance_on_the_same_subsets(theirs, ours):
    generator = np.random.RandomState(SEED)
    first, second = (layers["double"].numpy() for layers in ours)
    values = []
    for _ in range(SUBSETS):
        rows = generator.choice(GENERATED, SUBSET_SIZE, replace=False)
        others = generator.choice(REAL, SUBSET_SIZE, replace=False)
        values.append(squared_discrepancy(first[rows], second[others]))
    assert np.mean(values) == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-9)
    assert np.std(values) == pytest.approx(theirs[KEY_METRIC_KID_STD], rel=1e-7)


@pytest.mark.parametrize("block", [128, 4096])
def test_precision_and_recall_exactly(theirs, ours, block):
    result = precision_recall(ours[0]["single"], ours[1]["single"], block=block)
    # Shares as counts: torch-fidelity averages in float32.
    counts = round(theirs[KEY_METRIC_PRECISION] * GENERATED), round(theirs[KEY_METRIC_RECALL] * REAL)
    assert (round(result.precision * GENERATED), round(result.recall * REAL)) == counts
    assert 0 < counts[0] < GENERATED and 0 < counts[1] < REAL and counts[0] / GENERATED != counts[1] / REAL


def test_inception_score_of_equal_blocks(theirs, ours):
    result = inception_score(ours[0]["logits"], block=GENERATED // 4)
    assert result.value > 1.05
    assert result.value == pytest.approx(theirs[KEY_METRIC_ISC_MEAN], rel=1e-9)
    assert np.std(result.blocks) == pytest.approx(theirs[KEY_METRIC_ISC_STD], rel=1e-6)
