"""The Inception of 2015-12-05 that defines FID, sFID and IS."""

import io
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from workbench.data.encoders import file_digest
from workbench.data.weights import read_tensors, weights_folder
from workbench.evaluation.detectors.base import SPATIAL, Detected, FrozenDetector

_SHA256 = "6726825d"  # its beginning, as the name of the published file has it
_SIDE = 299


def load(device: torch.device) -> FrozenDetector:
    """The graph "Inception 2015-12-05" by which FID, sFID and IS are defined (ADM's evaluator), through torch-fidelity.

    2048 pooled features, 1008 class scores without the bias, and as spatial features the 1 x 1 branch of Mixed_6d.
    ValueError if torch-fidelity or its weight file is missing, or the file is not the published one.
    """
    network, digest = _inception()
    network.to(device)

    def read(images: UInt8[Tensor, "b c h w"]) -> Detected:
        maps = []
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


def _inception() -> tuple[nn.Module, str]:
    """torch-fidelity's network with its published weights, and their digest."""
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as published
    except ImportError as error:
        raise ValueError("detector 'inception-2015' needs torch-fidelity: pip install torch-fidelity") from error
    file = _inception_file(published.URL_INCEPTION_V3)
    digest = file_digest(file)
    if not digest.startswith(_SHA256):
        raise ValueError(
            f"{file} is damaged or of another release: its SHA-256 is {digest}; that of the published file begins with "
            f"{_SHA256}"
        )
    # torch-fidelity unpickles whatever lies in the file it is given, so it is given a copy of the plain tensors.
    plain = io.BytesIO()
    torch.save(read_tensors(file), plain)
    plain.seek(0)
    try:
        network = published.FeatureExtractorInceptionV3("inception-2015", ["2048", "logits_unbiased"], plain)
    except RuntimeError as error:
        raise ValueError(f"{file} does not hold the weights of Inception 2015-12-05: {error}") from error
    return network, digest


def _inception_file(url: str) -> Path:
    file = weights_folder() / url.rpartition("/")[2]
    if not file.is_file():
        raise ValueError(
            f"detector 'inception-2015' has no weights here: put {file.name}, which is at {url}, into the folder "
            f"{file.parent}; WORKBENCH_WEIGHTS names another folder"
        )
    return file
