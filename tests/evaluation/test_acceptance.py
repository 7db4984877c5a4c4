"""The pair of files with which ADM's evaluator tells its own numbers, scored here; needs three downloads."""

import pytest

from workbench.data.weights import weights_folder
from workbench.evaluation.detectors.base import load_detector
from workbench.evaluation.suite import score_file

REFERENCE, SAMPLES = "VIRTUAL_imagenet256_labeled.npz", "admnet_guided_upsampled_imagenet256.npz"
# The README of openai/guided-diffusion's evaluations; its float16 distances are the cause of the wide last two.
PUBLISHED = {"is": (215.84, 0.3), "fid": (3.9426, 4e-3), "sfid": (6.1404, 2e-3)}
PUBLISHED |= {"precision": (0.8265, 2.5e-3), "recall": (0.5309, 3e-3)}


def test_the_numbers_of_adm_s_readme(tmp_path):
    missing = [name for name in (REFERENCE, SAMPLES) if not (weights_folder() / name).is_file()]
    if missing:
        pytest.skip(f"{' and '.join(missing)} of openai/guided-diffusion/evaluations are not in {weights_folder()}")
    try:
        load_detector("inception-2015")
    except ValueError as error:
        pytest.skip(str(error))
    files = weights_folder() / SAMPLES, weights_folder() / REFERENCE
    found = {r["metric"]: r["value"] for r in score_file(*files, tmp_path, detector="inception-2015")}
    for metric, (value, tolerance) in PUBLISHED.items():
        assert found[metric] == pytest.approx(value, abs=tolerance), metric
