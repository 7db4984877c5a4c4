"""Latents stored by other programs: REPA's folder of arrays and LightningDiT's safetensors files.

Both have raw latents of an autoencoder, which the configured VAE scales. They are read once and written into our
shards by `data.latents`, as one file per image is too slow for training.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from workbench.arrays import map_npy
from workbench.config import DataConfig
from workbench.data.checksums import checksums
from workbench.data.folder import Folder, data_path, read_files
from workbench.data.images import Images, limited_rows, summary
from workbench.data.shards import ShardFile, gather
from workbench.data.tree import (
    MAX_CLASSES,
    SPLITS,
    SUFFIXES,
    Tree,
    class_names,
    images_of_tree,
    printable,
    split_folder,
)
from workbench.data.vae import VAE, KLAutoencoder
from workbench.data.weights import STATISTICS, read_statistics
from workbench.files import read_json

_LISTING_BYTES = 4_000_000_000  # limit for dataset.json; ImageNet's has 60 MB
STORES = ("repa-latents", "lightningdit-latents")


@dataclass(frozen=True)
class Store:
    """Raw latents of a split; ``read(indices, mirrored)`` returns ``b c h w`` with both moments or one ``sample``.

    ``statistics`` are the stored channel means and standard deviations, if there are any.
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

    @property
    def summary(self) -> str:
        """One-line summary: count, classes and origin."""
        return summary("stored latents", len(self.labels), self.classes, str(self.origin), ())


def open_store(config: DataConfig, split: str) -> Store:
    """Open the store of ``config``; without folders train and test (or val) in ``data.path`` it is all for training.

    Raises ValueError, naming the file, for labels or latents that are missing, damaged or inconsistent.
    """
    folder, other = _splits_of(config, split)
    open_folder = _open_repa if config.name == "repa-latents" else _open_lightningdit
    store = open_folder(folder, other)
    return store if config.limit is None else _limited(store, config.limit)


def _limited(store: Store, limit: int) -> Store:
    """Limit the rows in the same way as `data.images`."""
    chosen, content = limited_rows(store.labels, store.content, limit)
    read = store.read
    return replace(
        store,
        labels=store.labels[chosen],
        content=content,
        read=lambda indices, mirrored: read(chosen[indices], mirrored),
    )


def check_vae(store: Store, vae: VAE, config: DataConfig) -> None:
    """Raise ValueError if the latents do not fit VAE and image size, or lack the mirrored images of ``config``."""
    if not isinstance(vae, KLAutoencoder):
        raise ValueError(f"{store.origin} has latents of an autoencoder; VAE {vae.name!r} is not one")
    _, height, width = store.shape
    if store.channels != vae.channels:
        raise ValueError(f"{store.origin} has {store.channels} channels, VAE {vae.name!r} has {vae.channels}")
    if (height * vae.factor, width * vae.factor) != (config.size, config.size):
        raise ValueError(
            f"{store.origin} has latents of {height}x{width}, which VAE {vae.name!r} decodes to "
            f"{height * vae.factor}x{width * vae.factor} pixels; data.size is {config.size}"
        )
    if config.flip and not store.mirrored:
        raise ValueError(f"{store.origin} has no latents of mirrored images; set data.flip=false")
    if store.statistics is not None:
        mean, std = (values.reshape(-1, 1, 1) for values in store.statistics)
        offset = ((mean - vae.shift) * vae.scale).abs().max()
        spread = (std * vae.scale).log().abs().max()
        # Statistics of other images with the same VAE differ by a few hundredths, with another VAE by 1 or more.
        if vae.scale.numel() > 1 and (offset > 0.3 or spread > 0.3):
            raise ValueError(
                f"{store.origin / STATISTICS} does not match VAE {vae.name!r}: in its units, channel means are "
                f"up to {offset:.2g} from 0 and standard deviations up to a factor {spread.exp():.2g} from 1"
            )


def load_store_images(config: DataConfig, split: str) -> Images:
    """Load the images beside REPA's latents, in the order of the latents; ValueError for stores without images."""
    folder, other = _splits_of(config, split)
    pixels = folder / "images"
    if config.name != "repa-latents" or not pixels.is_dir():
        raise ValueError(
            f"{folder} has latents but no images, which encoder targets and scores against real images need: "
            f"use data.name=image-folder"
        )
    store = _open_repa(folder, other)
    names, labels = _labelled(pixels, SUFFIXES)
    if not np.array_equal(labels, store.labels):
        raise ValueError(f"the labels in {pixels} and in {folder / 'vae-sd'} differ")
    files = [pixels / name for name in names]
    sizes = np.array([file.stat().st_size for file in files], dtype=np.int64)
    tree, read = Tree(store.classes, names, sizes, labels), partial(read_files, files, config.size, config.crop)
    images = images_of_tree(config, split, tree, checksums(pixels, names), folder, read)
    return replace(images, content=store.content)  # the same hash identifies latents and images of one set


def _splits_of(config: DataConfig, split: str) -> tuple[Path, Path | None]:
    """Folders of a split and, if it exists, of the other split."""
    root = data_path(config, "the folder with the stored latents")
    if not root.is_dir():
        raise ValueError(f"data.path {root} is not a folder")
    folders = [child.name for child in root.iterdir() if child.is_dir()]
    part = split_folder(folders, split, str(root))
    if part is None and split == "test":
        raise ValueError(f"{root} only has a training split; put a test split into a folder test beside train")
    if part is None:
        return root, None
    rest = "train" if split == "test" else "test"
    other = next((name for word in SPLITS[rest] for name in folders if name.lower() == word), None)
    return root / part, root / other if other else None


def _classes(folder: Path, labels: Int[np.ndarray, "n"], others: Int[np.ndarray, "m"]) -> tuple[str, ...]:
    """Class names, numbered up to the largest label of all splits, so that all splits have the same classes."""
    return class_names([folder, folder.parent], int(max(labels.max(), others.max(initial=0))))


def _open_repa(folder: Path, other: Path | None) -> Store:
    """REPA: ``vae-sd/00000/img-mean-std-00000000.npy`` (mean, then deviation), labels in ``vae-sd/dataset.json``."""
    latents = folder / "vae-sd"
    if not latents.is_dir():
        raise ValueError(f"{folder} has no folder vae-sd with REPA's latents")
    names, labels = _labelled(latents, (".npy",))
    shape = _load_array(latents / names[0]).shape
    if len(shape) != 3 or shape[0] % 2 or 0 in shape:
        raise ValueError(f"{latents / names[0]} must hold mean and deviation, 2c h w; its shape is {shape}")
    listing = other / "vae-sd" / "dataset.json" if other else None
    others = _listed(listing)[1] if listing and listing.is_file() else labels
    classes = _classes(folder, labels, others)
    digest = hashlib.sha256("\0".join([f"repa-2 {shape}", *classes]).encode())
    for name, checksum, label in zip(names, checksums(latents, names).tolist(), labels.tolist(), strict=True):
        digest.update(f"{name} {checksum:08x} {label}\n".encode("utf-8", "surrogateescape"))

    def read(indices: np.ndarray, mirrored: bool) -> np.ndarray:
        assert not mirrored
        arrays = []
        for file in (latents / names[index] for index in indices):
            arrays.append(_load_array(file))
            if arrays[-1].shape != shape:
                raise ValueError(f"{file} has shape {arrays[-1].shape}, the first file has {shape}")
        return np.stack(arrays)

    return Store(folder, labels, classes, shape, False, False, digest.hexdigest(), read)


def _open_lightningdit(folder: Path, other: Path | None) -> Store:
    """LightningDiT: ``*.safetensors`` with one posterior sample (``latents``, ``latents_flip``) and ``labels`` each."""
    files = _shard_files(folder)
    if not files:
        raise ValueError(f"{folder} has no .safetensors files with LightningDiT's latents")
    digest = hashlib.sha256(b"lightningdit-2")
    shape, columns = files[0].shapes.get("latents", ())[1:], {"latents", "labels"}
    columns |= {"latents_flip"} & files[0].shapes.keys()
    for file in files:
        if not columns <= file.shapes.keys():
            raise ValueError(f"{file.path} lacks {', '.join(sorted(columns - file.shapes.keys()))}")
        rows = file.shapes["labels"][0] if len(file.shapes["labels"]) == 1 else -1
        if any(file.shapes[name] != (rows, *shape) for name in columns - {"labels"}) or len(shape) != 3:
            raise ValueError(
                f"{file.path} must hold latents of {rows} x {shape} like the first; it holds {file.shapes}"
            )
    names = [file.path.name for file in files]
    for name, checksum in zip(names, checksums(folder, names).tolist(), strict=True):
        digest.update(f"{name} {checksum:08x}\n".encode("utf-8", "surrogateescape"))
    labels = _stored_labels(files, folder)
    others = _stored_labels(found, other) if other and (found := _shard_files(other)) else labels
    classes, mirrored = _classes(folder, labels, others), "latents_flip" in columns
    digest.update(labels.tobytes() + "\0".join(classes).encode())
    starts = np.cumsum([0, *(file.shapes["labels"][0] for file in files[:-1])])

    def read(indices: np.ndarray, mirrored: bool) -> np.ndarray:
        rows = gather(files, starts, "latents_flip" if mirrored else "latents", indices)
        return rows.astype(np.float32, copy=False)

    stored = folder / STATISTICS
    statistics = read_statistics(stored, shape[0]) if stored.is_file() else None
    return Store(folder, labels, classes, shape, True, mirrored, digest.hexdigest(), read, statistics)


def _shard_files(folder: Path) -> list[ShardFile]:
    return [ShardFile(path) for path in sorted(folder.glob("*.safetensors")) if path.name[0] != "."]


def _stored_labels(files: Sequence[ShardFile], folder: Path) -> Int[np.ndarray, "n"]:
    """Labels of all files: integers in the column ``labels``."""
    for file in files:
        kind = file.dtypes.get("labels")
        if kind is None or not np.issubdtype(kind, np.integer) or len(file.shapes["labels"]) != 1:
            raise ValueError(f"{file.path} must have labels, one integer per row; it has {file.shapes}")
    labels = np.concatenate([file.column("labels") for file in files]).astype(np.int64)
    _check_labels(labels, folder)
    return labels


def _labelled(folder: Path, suffixes: Sequence[str]) -> tuple[list[str], Int[np.ndarray, "n"]]:
    """File names in a folder, sorted as in REPA, and their labels from ``dataset.json``."""
    listing = folder / "dataset.json"
    names, labels = _listed(listing)
    found = {path for path, _ in Folder(folder).walk("") if os.path.splitext(path)[1].lower() in suffixes}
    listed = set(names)
    for problem, rest in (("are missing", listed - found), ("have no label in it", found - listed)):
        if rest:
            first = printable(str(folder / min(rest)))
            raise ValueError(f"{len(rest)} files of {listing} {problem}, the first is {first}")
    order = sorted(range(len(names)), key=names.__getitem__)
    return [names[index] for index in order], labels[order]


def _listed(listing: Path) -> tuple[list[str], Int[np.ndarray, "n"]]:
    """Names and labels in ``dataset.json``, in its order; names are unique, labels are integers."""
    entries = read_json(listing, _LISTING_BYTES).get("labels")
    if not isinstance(entries, list):
        raise ValueError(f"{listing} is missing, damaged, or has no list of [name, class] under labels")
    names: dict[str, None] = {}
    labels = []
    for number, entry in enumerate(entries):
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and type(entry[1]) is int):
            raise ValueError(f"entry {number} of {listing} must be [name, integer]; it is {str(entry)[:80]}")
        name, label = entry
        if name in names:
            raise ValueError(f"{listing} lists {name!r} twice")
        if not 0 <= label < MAX_CLASSES:
            raise ValueError(
                f"{listing} has a label {str(label)[:20]}; labels go from 0 to at most {MAX_CLASSES - 1:,}"
            )
        names[name] = None
        labels.append(label)
    if not labels:
        raise ValueError(f"{listing} has no labels")
    return list(names), np.array(labels, dtype=np.int64)


def _check_labels(labels: Int[np.ndarray, "n"], where: Path) -> None:
    if not len(labels):
        raise ValueError(f"{where} has no labels")
    if labels.min() < 0:
        raise ValueError(f"{where} has a label {labels.min()}; they count from 0")
    if labels.max() >= MAX_CLASSES:
        raise ValueError(f"{where} has a label {labels.max()}; labels go from 0 to at most {MAX_CLASSES - 1:,}")


def _load_array(file: Path) -> Float[np.ndarray, "..."]:
    try:
        return np.asarray(map_npy(file)).astype(np.float32)
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(str(file)).removeprefix(" is damaged").removeprefix(": ")
        raise ValueError(f"{file} is damaged or not an array: {reason}") from error
