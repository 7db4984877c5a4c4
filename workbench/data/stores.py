"""Latents that other programs stored: REPA's folder of arrays and LightningDiT's safetensors files.

Both hold raw latents of an autoencoder, so the codec that the configuration names gives the units. They are read here
once and written into shards of our own by `data.latents`: one file an image is slow to train from.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from workbench.config import DataConfig
from workbench.data.codecs import Autoencoder, Codec
from workbench.data.folder import SUFFIXES, Tree, class_names, data_path, images_of_tree, read_files, split_folder
from workbench.data.images import Images, limited_rows
from workbench.data.shards import ShardFile, gather
from workbench.data.weights import STATISTICS, read_statistics

STORES = ("repa-latents", "lightningdit-latents")


@dataclass(frozen=True)
class Store:
    """Raw latents of a split: ``read(indices, mirrored)`` gives ``b c h w``, c being both moments or one ``sample``.

    ``statistics`` are the channel means and deviations that the other program kept, if it did.
    """

    origin: Path
    labels: Int[np.ndarray, "n"]
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    sample: bool
    mirrored: bool
    content: str
    read: Callable[[np.ndarray, bool], np.ndarray] = field(repr=False)
    statistics: tuple[Float[Tensor, "c"], Float[Tensor, "c"]] | None = None

    @property
    def channels(self) -> int:
        return self.shape[0] if self.sample else self.shape[0] // 2


def open_store(config: DataConfig, split: str) -> Store:
    """The store ``config`` names; all of it is for training unless ``data.path`` has folders train and test (or val).

    Raises ValueError, naming the file, for labels or latents that are missing, damaged, or do not go together.
    """
    folder = _split_of(config, split)
    store = _open_repa(folder) if config.name == "repa-latents" else _open_lightningdit(folder)
    return store if config.limit is None else _limited(store, config.limit)


def _limited(store: Store, limit: int) -> Store:
    """As `data.images` limits the images of a set, so that both are the same ones."""
    chosen, content = limited_rows(store.labels, store.content, limit)
    read = store.read
    return replace(
        store,
        labels=store.labels[chosen],
        content=content,
        read=lambda indices, mirrored: read(chosen[indices], mirrored),
    )


def check_codec(store: Store, codec: Codec, config: DataConfig) -> None:
    """ValueError if the store's latents cannot be of this codec and image size, or lack what ``config`` asks for."""
    if not isinstance(codec, Autoencoder):
        raise ValueError(f"{store.origin} holds latents of an autoencoder; codec {codec.name!r} is none")
    _, height, width = store.shape
    if store.channels != codec.channels:
        raise ValueError(f"{store.origin} has {store.channels} channels, codec {codec.name!r} has {codec.channels}")
    if (height * codec.factor, width * codec.factor) != (config.size, config.size):
        raise ValueError(
            f"{store.origin} has latents of {height}x{width}, which codec {codec.name!r} decodes to "
            f"{height * codec.factor}x{width * codec.factor} pixels; data.size is {config.size}"
        )
    if config.flip and not store.mirrored:
        raise ValueError(f"{store.origin} has no latents of mirrored images; set data.flip=false")
    if store.statistics is not None:
        mean, std = (values.reshape(-1, 1, 1) for values in store.statistics)
        offset = ((mean - codec.shift) * codec.scale).abs().max()
        spread = (std * codec.scale).log().abs().max()
        # The statistics of other images of the same codec differ by a few hundredths; those of another codec by units.
        if codec.scale.numel() > 1 and (offset > 0.3 or spread > 0.3):
            raise ValueError(
                f"{store.origin / STATISTICS} does not go with codec {codec.name!r}: in its units, channel means are "
                f"up to {offset:.2g} from 0 and deviations up to a factor {spread.exp():.2g} from 1"
            )


def load_store_images(config: DataConfig, split: str) -> Images:
    """The images beside REPA's latents, in the order of the latents; ValueError for stores without images."""
    folder = _split_of(config, split)
    pixels = folder / "images"
    if config.name != "repa-latents" or not pixels.is_dir():
        raise ValueError(
            f"{folder} holds latents and no images; targets of an encoder and scores against real images need them: "
            f"use data.name=image-folder"
        )
    store = _open_repa(folder)
    names, labels = _labelled(pixels, SUFFIXES)
    if not np.array_equal(labels, store.labels):
        raise ValueError(f"the labels in {pixels} and in {folder / 'vae-sd'} are not the same")
    files = [pixels / name for name in names]
    sizes = np.array([file.stat().st_size for file in files], dtype=np.int64)
    tree = Tree(store.classes, names, sizes, labels)
    images = images_of_tree(config, split, tree, folder, partial(read_files, files, config.size, config.crop))
    return replace(images, content=store.content)  # the mark by which latents and images are known to be the same set


def _split_of(config: DataConfig, split: str) -> Path:
    root = data_path(config, "the folder that the other program wrote")
    if not root.is_dir():
        raise ValueError(f"data.path {root} is not a folder")
    part = split_folder({child.name for child in root.iterdir() if child.is_dir()}, split, str(root))
    if part is None and split == "test":
        raise ValueError(f"{root} has one split, which is for training; another goes into a folder test beside train")
    return root / part if part else root


def _open_repa(folder: Path) -> Store:
    """REPA: ``vae-sd/00000/img-mean-std-00000000.npy`` (mean, then deviation), labels in ``vae-sd/dataset.json``."""
    latents = folder / "vae-sd"
    if not latents.is_dir():
        raise ValueError(f"{folder} has no folder vae-sd with REPA's latents")
    names, labels = _labelled(latents, (".npy",))
    shape = _load_array(latents / names[0]).shape
    if len(shape) != 3 or shape[0] % 2:
        raise ValueError(f"{latents / names[0]} must hold mean and deviation, 2c h w; its shape is {shape}")
    digest = hashlib.sha256(f"repa {shape}".encode())
    for name, label in zip(names, labels.tolist(), strict=True):
        digest.update(f"{name} {label}\n".encode())

    def read(indices: np.ndarray, mirrored: bool) -> np.ndarray:
        assert not mirrored
        arrays = []
        for file in (latents / names[index] for index in indices):
            arrays.append(_load_array(file))
            if arrays[-1].shape != shape:
                raise ValueError(f"{file} has shape {arrays[-1].shape}, the first one {shape}")
        return np.stack(arrays)

    return Store(folder, labels, class_names(folder, labels), shape, False, False, digest.hexdigest(), read)


def _open_lightningdit(folder: Path) -> Store:
    """LightningDiT: ``*.safetensors`` with one posterior sample (``latents``, ``latents_flip``) and ``labels`` each."""
    files = [ShardFile(path) for path in sorted(folder.glob("*.safetensors"))]
    if not files:
        raise ValueError(f"{folder} has no .safetensors files with LightningDiT's latents")
    digest = hashlib.sha256(b"lightningdit")
    shape, columns = files[0].shapes.get("latents", ())[1:], {"latents", "labels"}
    columns |= {"latents_flip"} & files[0].shapes.keys()
    for file in files:
        if not columns <= file.shapes.keys():
            raise ValueError(f"{file.path} lacks {', '.join(sorted(columns - file.shapes.keys()))}")
        rows = file.shapes["labels"][0]
        if any(file.shapes[name] != (rows, *shape) for name in columns - {"labels"}) or len(shape) != 3:
            raise ValueError(
                f"{file.path} must hold latents of {rows} x {shape} like the first; it holds {file.shapes}"
            )
        digest.update(f"{file.path.name} {file.path.stat().st_size}\n".encode())
    labels = np.concatenate([file.column("labels") for file in files]).astype(np.int64)
    _check_labels(labels, folder)
    digest.update(labels.tobytes())
    starts = np.cumsum([0, *(file.shapes["labels"][0] for file in files[:-1])])

    def read(indices: np.ndarray, mirrored: bool) -> np.ndarray:
        rows = gather(files, starts, "latents_flip" if mirrored else "latents", indices)
        return rows.astype(np.float32, copy=False)

    classes, mirrored = class_names(folder, labels), "latents_flip" in columns
    file = folder / STATISTICS
    found = read_statistics(file, shape[0]) if file.is_file() else None
    return Store(folder, labels, classes, shape, True, mirrored, digest.hexdigest(), read, found)


def _labelled(folder: Path, suffixes: Sequence[str]) -> tuple[list[str], Int[np.ndarray, "n"]]:
    """The names of a folder's files, sorted as REPA pairs them, and their labels from ``dataset.json``."""
    listing = folder / "dataset.json"
    try:
        labels = dict(json.loads(listing.read_text())["labels"])
        values = np.array(list(labels.values()), dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{listing} is missing, damaged, or has no list of [name, class]") from error
    found = set()
    for where, _, files in os.walk(folder):
        inside = Path(where).relative_to(folder)
        found |= {(inside / file).as_posix() for file in files if os.path.splitext(file)[1].lower() in suffixes}
    for problem, names in (("are missing", labels.keys() - found), ("have no label in it", found - labels.keys())):
        if names:
            raise ValueError(f"{len(names)} files of {listing} {problem}, the first is {folder / min(names)}")
    _check_labels(values, listing)
    names = sorted(labels)
    return names, np.array([labels[name] for name in names], dtype=np.int64)


def _check_labels(labels: Int[np.ndarray, "n"], where: Path) -> None:
    if not len(labels):
        raise ValueError(f"{where} has no labels")
    if labels.min() < 0:
        raise ValueError(f"{where} has a label {labels.min()}; they count from 0")


def _load_array(file: Path) -> Float[np.ndarray, "..."]:
    try:
        return np.load(file, allow_pickle=False).astype(np.float32, copy=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} is damaged or not an array: {error}") from error
