"""Trees of class folders: found by name, read when asked, cropped as ADM does."""

import hashlib
import io
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from workbench.config import DataConfig
from workbench.data.images import Images

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SPLITS = {"train": ("train",), "test": ("test", "val", "validation")}


@dataclass(frozen=True)
class Tree:
    """The images of one split: names relative to the folder of the classes (class/image.png), sizes and labels."""

    classes: tuple[str, ...]
    names: list[str]
    sizes: Int[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]


def load_image_folder(config: DataConfig, split: str) -> Images:
    """``config.path/[train|test|val]/class/*.png`` as RGB images of ``config.size`` pixels; the path may be a .zip.

    Without split folders every tenth image of each class is the test split. Files are opened when they are read;
    an empty file, one that is no image and, with ``crop: none``, one of another size raise a ValueError that names it.
    The content hash covers names, byte sizes and labels, so that a folder and a zip archive of it are the same set.
    """
    root = data_path(config, "a folder or a .zip file with one folder for each class")
    if root.suffix.lower() == ".zip":
        from workbench.data.archives import load_image_zip

        return load_image_zip(config, root, split)
    if not root.is_dir():
        raise ValueError(f"data.path {root} is not a folder")
    part = split_folder({child.name for child in root.iterdir() if child.is_dir()}, split, str(root))
    folder = root / part if part else root
    classes = sorted(child.name for child in folder.iterdir() if child.is_dir())
    tree = choose(_walk(folder, classes), classes, split, part is not None, f"{folder}/")
    read = partial(read_files, [folder / name for name in tree.names], config.size, config.crop)
    return images_of_tree(config, split, tree, root, read)


def data_path(config: DataConfig, what: str) -> Path:
    """``data.path`` with ``~`` expanded; ValueError saying ``what`` it has to be when it is missing."""
    if config.path is None:
        raise ValueError(f"data.name={config.name} needs data.path, {what}")
    return Path(config.path).expanduser()


def split_folder(folders: Iterable[str], split: str, where: str) -> str | None:
    """Which of the folders holds the split; None if none is for any split, ValueError if only the other one is."""
    folders = set(folders)
    found = next((name for name in SPLITS[split] if name in folders), None)
    if found is None and any(name in folders for names in SPLITS.values() for name in names):
        raise ValueError(f"{where} has no folder {' or '.join(SPLITS[split])} for the {split} split")
    return found


def choose(files: Iterable[tuple[str, int]], classes: Sequence[str], split: str, divided: bool, where: str) -> Tree:
    """The files (name, bytes) in order of class and name; unless ``divided`` already, the split's share of each class.

    ``where`` + name is how errors call a file; ValueError for one that is empty or has no image's suffix.
    """
    if not classes:
        raise ValueError(f"{where.rstrip('/!')} holds no class folders")
    found: dict[str, list[tuple[list[str], str, int]]] = {name: [] for name in classes}
    for name, size in files:
        if os.path.splitext(name)[1].lower() not in SUFFIXES:
            raise ValueError(f"{where}{name} is not an image file ({', '.join(SUFFIXES)})")
        if size == 0:
            raise ValueError(f"{where}{name} is empty")
        parts = name.split("/")
        found[parts[0]].append((parts, name, size))
    rows = []
    for label, name in enumerate(classes):
        for place, (_, file, size) in enumerate(sorted(found[name])):
            if divided or in_split(place, split):
                rows.append((file, size, label))
    if not rows:
        raise ValueError(f"{where.rstrip('/!')} holds no images for the {split} split")
    names, sizes, labels = zip(*rows, strict=True)
    return Tree(tuple(classes), list(names), np.array(sizes, dtype=np.int64), np.array(labels, dtype=np.int64))


def in_split(place: int, split: str) -> bool:
    """Whether an undivided set has the image at ``place`` of its class in this split: every tenth is for tests."""
    return (place % 10 == 9) == (split == "test")


def class_names(folder: Path, labels: Int[np.ndarray, "n"]) -> tuple[str, ...]:
    """The lines of ``folder/classes.txt``, or the numbers from 0 to the largest label if there is no such file.

    ValueError if a label has no line.
    """
    largest = int(labels.max())
    file = folder / "classes.txt"
    if not file.is_file():
        return tuple(str(label) for label in range(largest + 1))
    names = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
    if largest >= len(names):
        raise ValueError(f"{file} names {len(names)} classes, but there is a label {largest} (they count from 0)")
    return names


def images_of_tree(
    config: DataConfig, split: str, tree: Tree, origin: Path, read: Callable[[np.ndarray], np.ndarray]
) -> Images:
    """The image set of a tree, with the hash of its names, sizes and labels."""
    digest = hashlib.sha256(f"{config.size} {config.crop}".encode())
    for name, size, label in zip(tree.names, tree.sizes.tolist(), tree.labels.tolist(), strict=True):
        digest.update(f"{name} {size} {label}\n".encode())
    return Images(
        name=config.name,
        split=split,
        labels=tree.labels,
        classes=tree.classes,
        channels=3,
        size=config.size,
        origin=str(origin),
        content=digest.hexdigest(),
        read=read,
    )


def _walk(folder: Path, classes: Sequence[str]) -> Iterable[tuple[str, int]]:
    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error

    for name in classes:
        for where, _, files in os.walk(folder / name, onerror=refuse):
            inside = Path(where).relative_to(folder).as_posix()
            for file in files:
                try:
                    yield f"{inside}/{file}", os.stat(os.path.join(where, file)).st_size
                except OSError as error:  # a link to nowhere
                    refuse(error)


def read_files(files: list[Path], size: int, crop: str, indices: np.ndarray) -> np.ndarray:
    return np.stack([read_image(files[index], str(files[index]), size, crop) for index in indices])


def read_image(
    source: Path | io.BytesIO, name: str, size: int, crop: str = "adm"
) -> UInt8[np.ndarray, "3 {size} {size}"]:
    """One image file as uint8 ``3 size size``; ValueError naming it as ``name`` if it cannot be."""
    try:
        with Image.open(source) as opened:
            image = opened.convert("RGB")
    # Pillow's plugins let errors of many kinds through for damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is damaged or not an image: {error}") from error
    if crop == "none" and image.size != (size, size):
        raise ValueError(f"{name} is {image.width}x{image.height}; with data.crop=none all must be {size}x{size}")
    return np.asarray(adm_center_crop(image, size)).transpose(2, 0, 1)


def adm_center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop: halve with a box filter while twice too large, then bicubic, then the middle square.

    An image whose shorter side is below ``size`` is enlarged, as ADM does it; ImageNet has many.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
