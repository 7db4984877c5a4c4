"""Cosine similarity of tokens: by hand, and against torch."""

import numpy as np
import pytest
import torch

from workbench.features.similarity import token_similarity


def test_cosines_by_hand():
    # Two images of two tokens: (3, 4) has length 5, so its cosines to the axes are .6 and .8; zero is like nothing.
    features = np.array([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [0.0, 0.0]]])
    assert token_similarity(features, [(0, 0)]) == pytest.approx(np.array([[1, 0], [0.6, 0]]))
    assert token_similarity(features, [(0, 0), (0, 1)], "mean") == pytest.approx(np.array([[0.5, 0.5], [0.7, 0]]))
    assert token_similarity(features, [(0, 0), (0, 1)], "maximum") == pytest.approx(np.array([[1, 1], [0.8, 0]]))


def test_cosines_are_those_of_torch_whatever_the_length():
    features = torch.randn(3, 16, 20, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 16)[:, None]
    wanted = torch.cosine_similarity(features.double(), features[1, 5].double(), dim=-1)
    np.testing.assert_allclose(token_similarity(features.numpy(), [(1, 5)]), wanted, atol=1e-12)
