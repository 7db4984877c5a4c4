"""The tests check the shapes that annotations name: of arguments, of what comes back, of a dataclass's fields."""

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from workbench.backbones.sit import Backbone
from workbench.diffusion.tokens import patchify, unpatchify
from workbench.evaluation.frechet import Statistics


def test_arguments_are_checked():
    with pytest.raises(TypeCheckError, match="parameters of workbench.diffusion.tokens.patchify"):
        patchify(torch.zeros(2, 4, 8), 2)
    with pytest.raises(TypeCheckError):
        patchify(torch.zeros(2, 4, 8, 8, dtype=torch.int64), 2)
    assert patchify(torch.zeros(2, 4, 8, 8), 2).shape == (2, 16, 16)


def test_what_comes_back_is_checked(monkeypatch):
    monkeypatch.setitem(unpatchify.__wrapped__.__globals__, "rearrange", lambda tokens, *_, **__: tokens)
    with pytest.raises(TypeCheckError, match="return value"):
        unpatchify(torch.zeros(2, 16, 16), 2, 4, 8)


def test_fields_of_a_dataclass_and_methods_are_checked():
    with pytest.raises(TypeCheckError):
        Statistics(5, np.zeros(3), np.zeros((3, 2)))
    network = Backbone(size="pico", patch=2, channels=4, height=8, classes=3)
    with pytest.raises(TypeCheckError):
        network(torch.zeros(2, 4, 8, 8), torch.zeros(3), torch.zeros(2, dtype=torch.int64))
