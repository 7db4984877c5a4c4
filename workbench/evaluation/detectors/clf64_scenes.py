"""The classifier of scenes: garments and twelve colours, whatever the background."""

from dataclasses import replace

import torch

from workbench.data.scenes import SIZES
from workbench.data.sets.fashion_mnist import CLASSES
from workbench.evaluation.detectors.clf64 import ClassifierDetector, load_clf64

NAME = "clf64-scenes"


def load(device: torch.device) -> ClassifierDetector:
    """The classifier that ships with the package, trained on scenes of 32 pixels; its logits are those of garments."""
    detector = load_clf64(name=NAME)
    detector.model.to(device)
    return replace(detector, classes=CLASSES, sizes=SIZES, resize="64 x 64 averaged to 32 x 32; no other size")
