"""The Inception network of 2015-12-05 that defines FID, sFID and IS."""

import io
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from workbench.data.encoders import file_digest
from workbench.data.weights import read_tensors, weights_folder
from workbench.evaluation.detectors.base import SPATIAL, Detected, FrozenDetector

_SHA256 = "6726825d"  # the first digits, from the name of the published file
_SIDE = 299


def load(device: torch.device) -> FrozenDetector:
    """The graph "Inception 2015-12-05" of FID, sFID and IS (as in ADM's evaluator), loaded through torch-fidelity.

    It has 2048 pooled features and 1008 class scores without the bias; the spatial features are the 1 x 1 branch of
    Mixed_6d. Raises ValueError if torch-fidelity or its weights file is missing, or the file is not the published one.
    """
    network, digest = _inception()
    network.to(device)

    def read(images: UInt8[Tensor, "b c h w"]) -> Detected:
        maps: list[Tensor] = []
        hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda *passed: maps.append(passed[-1]))
        try:
            features, logits = network(images.to(device).expand(-1, 3, -1, -1))
        finally:
            hook.remove()
        return Detected(features, maps[0][:, :SPATIAL], logits)

    return FrozenDetector(
        name="inception-2015",
        weights=digest,
        dimensions=network.fc.in_features,
        resize=f"TensorFlow 1's bilinear to {_SIDE} x {_SIDE} (torch-fidelity)",
        device=device,
        read=read,
        size=_SIDE,
    )


def _inception() -> tuple[Any, str]:
    """torch-fidelity's network with its published weights, and their digest."""
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as published
    except ImportError as error:
        raise ValueError("detector 'inception-2015' needs torch-fidelity: pip install torch-fidelity") from error
    file = _inception_file(published.URL_INCEPTION_V3)
    digest = file_digest(file)
    if not digest.startswith(_SHA256):
        raise ValueError(
            f"{file} is damaged or from another release: its SHA-256 is {digest}; that of the published file begins "
            f"with {_SHA256}"
        )
    # torch-fidelity unpickles its file, which may execute code, so it is given a copy with only the tensors.
    plain = io.BytesIO()
    torch.save(read_tensors(file), plain)
    plain.seek(0)
    try:
        network = published.FeatureExtractorInceptionV3("inception-2015", ["2048", "logits_unbiased"], plain)
    except RuntimeError as error:
        raise ValueError(f"{file} does not have the weights of Inception 2015-12-05: {error}") from error
    return network, digest


def _inception_file(url: str) -> Path:
    file = weights_folder() / url.rpartition("/")[2]
    if not file.is_file():
        raise ValueError(
            f"detector 'inception-2015' has no weights: download {url} into the folder {file.parent}, or "
            f"set WORKBENCH_WEIGHTS to the folder that has {file.name}"
        )
    return file
