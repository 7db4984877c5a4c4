"""A small classifier trained on the workbench's own images; FD-clf64 compares its 64 penultimate features.

That of scenes finds the object first and has a second head for its colour, so that its features describe the object,
whatever is behind it.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Integer, Shaped, UInt8
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

from workbench.data.sets.fashion_mnist import CLASSES
from workbench.evaluation.detectors.base import (
    DETECTION_BATCH,
    SPATIAL,
    Detected,
    area_averages,
    check_images,
    joined,
    scaled,
    single_precision,
)
from workbench.files import write_atomically
from workbench.runs.finite import name_of_not_finite

ASSETS = Path(__file__).parents[2] / "data" / "assets"
SIZE = 32
WIDTH = 64
RECORD_KEYS = ("classes", "channels", "recipe", "test_accuracy", "seed", "training_images_sha256", "sha256")
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.02
# Generated images are not always centred. No flips, as mirrored digits and letters are other images.
SHIFT = 2
DROPOUT = 0.2
RECIPE = {
    "optimizer": "AdamW, one cycle",
    "learning_rate": LEARNING_RATE,
    "weight_decay": WEIGHT_DECAY,
    "shift": SHIFT,
    "dropout": DROPOUT,
}


@dataclass(frozen=True)
class Objects:
    """What is known of the objects in scenes: their colours (labels from 0 on) and masks, True on the object."""

    colours: Integer[Tensor, " n"]
    masks: Bool[Tensor, "n h w"]


class Classifier64(nn.Module):
    """Small convolutional classifier of 32 x 32 images in [-1, 1]; the 64 penultimate units are features.

    With ``colours``, it is a classifier of scenes: `objects` says where on an 8 x 8 map the object is, the features are
    averaged there, and a second head classifies the colour.
    """

    def __init__(self, classes: int, channels: int = 1, colours: int = 0) -> None:
        super().__init__()
        stages = [(channels, 32, 5, 2), (32, 64, 3, 1), (64, 128, 3, 2), (128, 128, 3, 1 if colours else 2)]
        layers = []
        for inputs, outputs, kernel, stride in stages:
            layers += [
                nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.stages = nn.Sequential(*layers)
        # Normalized before the activation, so that no unit is dead: a dead one would not contribute to any score.
        self.penultimate = nn.Sequential(nn.Linear(128, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.GELU())
        self.head = nn.Linear(WIDTH, classes)
        self.colours = nn.Linear(WIDTH, colours) if colours else None
        self.objects = nn.Conv2d(128, 1, 1, bias=False) if colours else None

    def pooled(self, maps: Float[Tensor, "b 128 s s"]) -> Float[Tensor, "b 64"]:
        if self.objects is None:
            return self.penultimate(maps.mean(dim=(2, 3)))
        shares = self.objects(maps).sigmoid()
        return self.penultimate((maps * shares).sum(dim=(2, 3)) / shares.sum(dim=(2, 3)).clamp(min=1e-3))

    def features(self, images: Float[Tensor, "b c 32 32"]) -> Float[Tensor, "b 64"]:
        return self.pooled(self.stages(images))

    def forward(self, images: Float[Tensor, "b c 32 32"]) -> Float[Tensor, "b k"]:
        return self.head(self.features(images))


@dataclass(frozen=True)
class ClassifierDetector:
    """A trained `Classifier64` as a `Detector`; `record` describes its training, `classes` names its logits.

    Its spatial features are the map of the last convolution, 4 x 4 or, for scenes, 8 x 8. Images of one of `sizes` are
    averaged to 32 x 32.
    """

    model: Classifier64
    hash: str
    record: dict[str, Any]
    classes: tuple[str, ...] | None = None
    name: str = "clf64"
    dimensions: int = WIDTH
    resize: str = f"none, {SIZE}x{SIZE} only"
    reduction: None = None
    encoder: None = None
    sizes: tuple[int, ...] = (SIZE,)

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Shaped[Tensor, "b c h w"]) -> Detected:
        """Detect images on the model's device, in float32 and batches of 256.

        Raises ValueError if the images are not uint8 with the channels and size that the classifier was trained on.
        """
        check_images(self.name, images, channels=(self.record["channels"],), size=self.sizes)
        with single_precision():
            return joined([self._read(part) for part in images.split(DETECTION_BATCH)])

    def _read(self, images: UInt8[Tensor, "b c h w"]) -> Detected:
        maps = self.model.stages(area_averages(scaled(images.to(self.model.head.weight.device)), SIZE))
        features = self.model.pooled(maps)
        return Detected(features, maps[:, :SPATIAL], self.model.head(features))


def load(device: torch.device) -> ClassifierDetector:
    """The classifier that ships with the package, trained on Fashion-MNIST."""
    detector = load_clf64()
    detector.model.to(device)
    return replace(detector, classes=CLASSES)


def load_clf64(path: Path | None = None, name: str = "clf64") -> ClassifierDetector:
    """Load the classifier `name` in folder `path` (clf64.safetensors, clf64.json), by default the package's own.

    Raises ValueError, naming the file, if one is missing, the record is incomplete, or the SHA-256 of the weights
    differs from the record.
    """
    folder = ASSETS if path is None else path
    weights_file, record_file = folder / f"{name}.safetensors", folder / f"{name}.json"
    for file in (weights_file, record_file):
        if not file.is_file():
            raise ValueError(f"{file} does not exist; allowed is a folder written by save_clf64")
    try:
        record = json.loads(record_file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{record_file} is not JSON: {error}") from error
    missing = [key for key in RECORD_KEYS if key not in record]
    if missing:
        raise ValueError(f"{record_file} lacks {', '.join(missing)}")
    weights = weights_file.read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    if digest != record["sha256"]:
        raise ValueError(f"{weights_file} has sha256 {digest}; its record states {record['sha256']}")
    model = Classifier64(record["classes"], record["channels"], record.get("colours", 0))
    model.load_state_dict(read_tensors(weights))
    return ClassifierDetector(model, digest, record, name=name)


def save_clf64(model: Classifier64, folder: Path, record: dict[str, Any], name: str = "clf64") -> None:
    """Write the classifier as clf64.safetensors and clf64.json (or another `name`) into `folder`, each atomically.

    The record is that of `train_clf64`; the SHA-256 of the weights file is added. Raises ValueError if a key is
    missing or a weight is not finite.
    """
    weights = write_tensors({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
    record = {**record, "sha256": hashlib.sha256(weights).hexdigest()}
    missing = [key for key in RECORD_KEYS if key not in record]
    if missing:
        raise ValueError(f"the record of {name} lacks {', '.join(missing)}")
    if broken := name_of_not_finite(model.state_dict()):
        raise ValueError(f"{broken} of {name} is not finite: its training diverged")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.safetensors", weights)
    write_atomically(folder / f"{name}.json", (json.dumps(record, indent=2) + "\n").encode())


def train_clf64(
    train_images: UInt8[Tensor, "n c 32 32"],
    train_labels: Integer[Tensor, " n"],
    test_images: UInt8[Tensor, "m c 32 32"],
    test_labels: Integer[Tensor, " m"],
    *,
    classes: int,
    epochs: int = 12,
    batch: int = 128,
    seed: int = 0,
    objects: tuple[Objects, Objects] | None = None,
) -> Iterator[dict[str, Any]]:
    """Train a `Classifier64` on the CPU; yields epoch, epochs, loss and test_accuracy after each epoch.

    `objects` are those of the training and test images, for a classifier of scenes; the accuracy of its second head is
    `colour_accuracy`.

    The last one also has `model` and `record` (for `save_clf64`). Weights, order, shifts and dropout are drawn from
    one generator with `seed`. Raises ValueError, at the first step, for a label that is not one of the classes.
    """
    _check_labels(torch.cat([train_labels, test_labels]), classes)
    generator = torch.Generator().manual_seed(seed)
    kinds = 0 if objects is None else 1 + max(int(part.colours.max()) for part in objects)
    model = _initialised(Classifier64(classes, train_images.shape[1], kinds), generator)
    parts = math.ceil(len(train_images) / batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * parts)
    for epoch in range(1, epochs + 1):
        total = 0.0
        # Batches of almost equal size, as a last batch of one image would have no batch statistics.
        for rows in torch.randperm(len(train_images), generator=generator).tensor_split(parts):
            images, seen = scaled(train_images[rows]), None
            if objects is not None:  # the masks are shifted with their images
                seen = Objects(objects[0].colours[rows], objects[0].masks[rows])
                images = torch.cat([images, seen.masks[:, None].float()], dim=1)
            images = _shifted(images, generator)
            if seen is not None:
                images, seen = images[:, :-1], Objects(seen.colours, images[:, -1] > 0.5)
            loss = _loss(model.train(), images, train_labels[rows].long(), seen, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        progress: dict[str, Any] = {"epoch": epoch, "epochs": epochs, "loss": total / len(train_images)}
        accuracies = {"test_accuracy": _accuracy(model.eval(), model.head, test_images, test_labels)}
        if model.colours is not None and objects is not None:
            accuracies["colour_accuracy"] = _accuracy(model, model.colours, test_images, objects[1].colours)
        progress |= accuracies
        if epoch == epochs:
            recipe = {**RECIPE, "epochs": epochs, "batch": batch}
            record = _record(train_images, classes, recipe, seed) | accuracies | ({"colours": kinds} if kinds else {})
            progress |= {"model": model, "record": record}
        yield progress


def _record(images: UInt8[Tensor, "n c h w"], classes: int, recipe: dict[str, Any], seed: int) -> dict[str, Any]:
    return {
        "classes": classes,
        "channels": images.shape[1],
        "recipe": recipe,
        "seed": seed,
        "training_images": len(images),
        "training_images_sha256": hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest(),
    }


def _check_labels(labels: Integer[Tensor, " n"], classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels run from {low} to {high}; allowed are 0 to {classes - 1}")


def _initialised(model: Classifier64, generator: torch.Generator) -> Classifier64:
    """He initialization drawn from `generator`, replacing the weights drawn when the layers were built."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    for head in (model.head, model.colours):
        if head is not None:
            nn.init.zeros_(head.bias)
    return model


def _shifted(images: Float[Tensor, "b c h w"], generator: torch.Generator) -> Float[Tensor, "b c h w"]:
    """Shift each image by whole pixels, drawn for each image and axis; border pixels are repeated."""
    b, _, h, w = images.shape
    down, right = torch.randint(-SHIFT, SHIFT + 1, (2, b, 1), generator=generator)
    rows = (torch.arange(h) + down).clamp(0, h - 1)
    columns = (torch.arange(w) + right).clamp(0, w - 1)
    moved = images[rearrange(torch.arange(b), "b -> b 1 1"), :, rows[:, :, None], columns[:, None, :]]
    return rearrange(moved, "b h w c -> b c h w").contiguous()


def _loss(
    model: Classifier64,
    images: Float[Tensor, "b c h w"],
    labels: Integer[Tensor, " b"],
    objects: Objects | None,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Mean cross-entropy with dropout on the features, drawn here as nn.Dropout takes no generator."""
    maps = model.stages(images)
    features = model.pooled(maps)
    kept = torch.rand(features.shape, generator=generator) >= DROPOUT
    features = features * kept / (1 - DROPOUT)
    loss = nn.functional.cross_entropy(model.head(features), labels)
    if objects is not None and model.colours is not None and model.objects is not None:
        loss = loss + nn.functional.cross_entropy(model.colours(features), objects.colours)
        shares = area_averages(objects.masks[:, None].float(), maps.shape[-1])
        loss = loss + nn.functional.binary_cross_entropy_with_logits(model.objects(maps), shares)
    return loss


@torch.no_grad()
def _accuracy(
    model: Classifier64, head: nn.Module, images: UInt8[Tensor, "m c h w"], labels: Integer[Tensor, " m"]
) -> float:
    parts = images.split(DETECTION_BATCH)
    predicted = torch.cat([head(model.features(scaled(part))).argmax(dim=1) for part in parts])
    return (predicted == labels).double().mean().item()
