"""Trees of class folders: found by name, read when asked, cropped as ADM does."""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from workbench.config import DataConfig
from workbench.data.images import Images

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "validation")}


def load_image_folder(config: DataConfig, split: str) -> Images:
    """``config.path/[train|test|val]/class/*.png`` as RGB images of ``config.size`` pixels.

    Without split folders every tenth image of each class is the test split. Files are opened when they are read;
    an empty file, one that is no image, and one smaller than ``size`` (or, with ``crop: none``, of another size)
    raise a ValueError that names it. The content hash covers names, byte sizes and labels.
    """
    if config.path is None:
        raise ValueError("data.name=image-folder needs data.path, a folder with one folder for each class")
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise ValueError(f"data.path {root} is not a folder")
    folder = next((root / name for name in _SPLIT_FOLDERS[split] if (root / name).is_dir()), None)
    divided = any((root / name).is_dir() for names in _SPLIT_FOLDERS.values() for name in names)
    if divided and folder is None:
        raise ValueError(f"{root} has no folder {' or '.join(_SPLIT_FOLDERS[split])} for the {split} split")
    classes, files, labels = _list(folder or root, split, divided)
    return Images(
        name="image-folder",
        split=split,
        labels=labels,
        classes=classes,
        channels=3,
        size=config.size,
        origin=str(root),
        content=_content(files, folder or root, labels, config),
        read=partial(_read_all, files, config.size, config.crop),
    )


def _list(folder: Path, split: str, divided: bool) -> tuple[tuple[str, ...], list[Path], np.ndarray]:
    classes = tuple(sorted(child.name for child in folder.iterdir() if child.is_dir()))
    if not classes:
        raise ValueError(f"{folder} holds no class folders")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).rglob("*") if path.is_file())
        for path in found:
            if path.suffix.lower() not in SUFFIXES:
                raise ValueError(f"{path} is not an image file ({', '.join(SUFFIXES)})")
            if path.stat().st_size == 0:
                raise ValueError(f"{path} is empty")
        chosen = [p for i, p in enumerate(found) if divided or (i % 10 == 9) == (split == "test")]
        files += chosen
        labels += [label] * len(chosen)
    if not files:
        raise ValueError(f"{folder} holds no images for the {split} split")
    return classes, files, np.asarray(labels, dtype=np.int64)


def _content(files: list[Path], folder: Path, labels: np.ndarray, config: DataConfig) -> str:
    digest = hashlib.sha256(f"{config.size} {config.crop}".encode())
    for path, label in zip(files, labels, strict=True):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size} {label}\n".encode())
    return digest.hexdigest()


def _read_all(files: list[Path], size: int, crop: str, indices: np.ndarray) -> np.ndarray:
    return np.stack([read_image(files[index], size, crop) for index in indices])


def read_image(path: Path, size: int, crop: str = "adm") -> np.ndarray:
    """One image file as uint8 ``3 size size``; ValueError naming the file if it cannot be."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is damaged or not an image: {error}") from error
    if crop == "none" and image.size != (size, size):
        raise ValueError(f"{path} is {image.width}x{image.height}; with data.crop=none all must be {size}x{size}")
    if min(image.size) < size:
        raise ValueError(f"{path} is {image.width}x{image.height}, smaller than data.size {size}")
    return np.asarray(adm_center_crop(image, size)).transpose(2, 0, 1)


def adm_center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop: halve with a box filter while twice too large, then bicubic, then the middle square."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
