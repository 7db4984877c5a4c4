"""What a model predicts of the clean image, against plain torch."""

import numpy as np
import pytest
import torch

from workbench.data.latents import open_latents
from workbench.features import predictions
from workbench.features.extract import extract, noisy_latents
from workbench.features.predictions import predict_clean


@pytest.fixture
def predicted(run, root, backbone, passes, monkeypatch):
    """predicted() -> features of three images at two times, and what the model predicts from them."""
    monkeypatch.setattr(predictions, "load_backbone", lambda *_: backbone)
    monkeypatch.setattr(predictions, "_BATCH", 2)

    def made():
        features = extract(run, [3, 0, 7], [backbone.depth], [0.3, 0.8], root=root)
        return features, predict_clean(run, features, root=root)

    return made


@pytest.mark.parametrize("readable", [True, False])
def test_predictions_are_what_a_few_lines_of_torch_give(run, root, backbone, predicted, monkeypatch, readable):
    if not readable:  # as of a backbone of another package
        monkeypatch.setattr(backbone, "read_out", lambda tokens, x_t, t, y: torch.ones_like(x_t))
    features, found = predicted()
    latents = open_latents(run.config, "train", root / ".latents")
    for number, t in enumerate((0.3, 0.8)):
        _, x_t = noisy_latents(latents, np.array([3, 0, 7]), predictions.get_path("linear"), t, seed=0)
        times = torch.full((3,), t)
        with torch.no_grad():
            v_u = backbone(x_t, times, torch.full((3,), backbone.null_label))
            v_c = backbone(x_t, times, torch.from_numpy(latents.labels[[3, 0, 7]].astype(np.int64)))
        assert (v_u - v_c).abs().max() > 0.02  # the label matters
        torch.testing.assert_close(found.x_t[number], x_t)
        for w in (0.0, 1.0, 5.0):
            wanted = x_t - t * (v_u + w * (v_c - v_u))
            torch.testing.assert_close(found.guided(w)[number], wanted, atol=1e-5 * (1 + w), rtol=1e-5)


def test_blocks_run_once(predicted, passes, backbone, monkeypatch):
    whole = []
    forward = backbone.forward_tapped
    monkeypatch.setattr(backbone, "forward_tapped", lambda *given: whole.append(len(given[0])) or forward(*given))
    predicted()
    assert sum(count for count, _ in passes) == 3 * 2 * 2 and whole == [1]  # one image, to compare with what is read
