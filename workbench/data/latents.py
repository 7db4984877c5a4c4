"""Encoded image sets: posterior moments and labels in shards, written once.

ImageNet's 1,281,167 images of 256 pixels take 42 GB with an SD-VAE (8 x 32 x 32 float32 numbers) and 84 GB with VA-VAE
(64 x 16 x 16). Mirrored images double that; ``data.precision: float16`` halves it.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from workbench.config import Config, DataConfig, to_dict
from workbench.data.checksums import stamp
from workbench.data.images import Images, load_images
from workbench.data.shards import SHARD_ROWS, ReadRows, Rows, Shards, open_shards, rows_of_a_shard, write_shards
from workbench.data.stores import STORES, Store, check_vae, open_store
from workbench.data.vae import VAE, KLAutoencoder, find_vae
from workbench.diffusion.precision import tf32
from workbench.files import hold_lock, home_path, read_json, write_json

log = logging.getLogger(__name__)

_FEW = 256  # rows that take less time than to encode and write an image set
_MANY = 50_000  # images; more are not listed again once they are encoded
_LINKS_OF_A_LEAF = 2  # from the folder above, and from itself
_KNOWN = "known"  # folder of notes which latents belong to which large folder of images


@dataclass(frozen=True)
class Latents:
    """``moments`` (mean and standard deviation, ``n 2c h w`` float32) and ``labels`` of an image set."""

    shards: "Shards | _Computed"

    @property
    def index(self) -> dict:
        return self.shards.index

    @property
    def channels(self) -> int:
        return self.index["shape"][0] // 2

    @property
    def height(self) -> int:
        return self.index["shape"][1]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.index["classes"])

    @property
    def content(self) -> str:
        """Hash of images, VAE and encoding."""
        return self.index["content"]

    def __len__(self) -> int:
        return len(self.shards)

    @cached_property
    def labels(self) -> Int[np.ndarray, "n"]:
        return self.shards.column("labels")

    def check_labels(self) -> None:
        """Raise ValueError unless every label is a class; the label after the last class is the null label."""
        labels, classes = self.labels, len(self.classes)
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"{self.shards.folder} has labels {labels.min()} to {labels.max()}; its {classes} classes allow "
                f"0 to {classes - 1}"
            )

    def moments(
        self, indices: Integer[np.ndarray, "b"], flipped: Bool[np.ndarray, "b"] | None = None
    ) -> Float[Tensor, "b c2 h w"]:
        """Stored moments of the images at ``indices``: means in the first half of the channels, then deviations.

        Where ``flipped``, moments of the mirrored image; ValueError if they were not stored (``data.flip``).
        """
        if flipped is None:
            rows = self.shards.rows("moments", indices)
        elif self.index.get("flip"):
            plain = self.shards.rows("moments", indices[~flipped])
            rows = np.empty((len(indices), *plain.shape[1:]), plain.dtype)
            rows[~flipped], rows[flipped] = plain, self.shards.rows("moments_flip", indices[flipped])
        else:
            raise ValueError(f"{self.shards.folder} was written without mirrored images (data.flip)")
        moments = torch.from_numpy(rows).float()
        # A store of single posterior samples has means only.
        return torch.cat([moments, torch.zeros_like(moments)], dim=1) if self.index.get("sample") else moments


@dataclass(frozen=True)
class Source:
    """Content of a latents folder to be written: labels, a function that computes rows, description and summary."""

    labels: Int[np.ndarray, "n"]
    rows: Rows
    row_bytes: int
    described: dict[str, Any]
    summary: str

    def folder(self, root: Path) -> Path:
        """Folder of these latents under ``root``."""
        return root / self.described["content"][:16]

    def report(self) -> None:
        """Log the summary, on rank 0 only."""
        if os.environ.get("RANK", "0") == "0":
            log.info("%s", self.summary)


@dataclass(frozen=True)
class _Computed:
    """Shards that are not written: rows are computed when they are read, and kept in `known`.

    Each is computed alone, so that its last bits do not depend on the others.
    """

    source: Source
    folder: Path
    known: dict[int, dict[str, np.ndarray]]

    def __len__(self) -> int:
        return len(self.source.labels)

    @property
    def index(self) -> dict[str, Any]:
        return {**self.source.described, "count": len(self)}

    def column(self, name: str) -> np.ndarray:
        return self.source.labels if name == "labels" else self.rows(name, np.arange(len(self)))

    def rows(self, column: str, indices: Integer[np.ndarray, "b"]) -> np.ndarray:
        if len(self.known) > 4 * _FEW:
            self.known.clear()
        for index in indices.tolist():
            if index not in self.known:
                self.known[index] = dict(self.source.rows(np.array([index])))
        return np.concatenate([self.known[index][column] for index in indices.tolist()])


@lru_cache(maxsize=4)
def _known_of(content: str) -> dict[int, dict[str, np.ndarray]]:
    """Rows that were computed before, of the same images and VAE: a view reads the same ones for each step."""
    return {}


def open_latents(
    config: Config,
    split: str,
    root: Path,
    progress: Callable[[int, int], None] | None = None,
    reads: int | None = None,
) -> Latents:
    """Open the latents of a configuration's images and VAE under ``root``, and encode them first if necessary.

    ``progress(done, total)`` is called while encoding; `data.encode` encodes in several processes. Of a set that is not
    encoded, a few images (``reads``, the number that will be read) are encoded without the others, and not stored.
    Raises ValueError, naming the file, for damaged shards.
    """
    known = known_folder(config, split, root)
    if known is not None:
        log.info("the images of %s were encoded before and are not listed again", config.data.path)
        return open_encoded(known)
    source = latent_source(config, split)
    source.report()
    if reads is not None and reads > len(source.labels):  # before they are encoded
        raise ValueError(
            f"{reads:,} images are to be read; allowed are 1 to {len(source.labels):,}, those of the {split} split"
        )
    folder = source.folder(root)
    if reads is not None and reads <= _FEW and not (folder / "index.json").is_file():
        few = Latents(_Computed(source, folder, _known_of(source.described["content"])))
        few.check_labels()
        return few
    with turn_to_write(folder) as wanted:
        if wanted:
            write_latents(config, split, folder, progress=progress)
    remember(config, split, root, folder, len(source.labels))
    return open_encoded(folder)


def open_encoded(folder: Path) -> Latents:
    """Open a folder of latents that was written completely."""
    latents = Latents(open_shards(folder))
    latents.check_labels()
    return latents


def known_folder(config: Config, split: str, root: Path) -> Path | None:
    """The folder under ``root`` with the latents of a large image folder that has not changed; None if there is none.

    Listing a million images takes minutes on a network file system. So of more than 50,000 images only the folders are
    looked at, whose times change when a file is added, removed or renamed. `data.encode` lists all files.
    """
    note = _note(config, split, root)
    if not note.is_file():
        return None
    record = read_json(note)
    folder = root / str(record.get("latents"))
    if record.get("folders") != _folder_times(config) or not (folder / "index.json").is_file():
        return None
    return folder


def remember(config: Config, split: str, root: Path, folder: Path, count: int) -> None:
    """Note for `known_folder` which latents belong to a folder of more than 50,000 images."""
    if count > _MANY and (times := _folder_times(config)) is not None:
        note = _note(config, split, root)
        with contextlib.suppress(OSError):  # a read-only folder: the images are listed each time
            note.parent.mkdir(exist_ok=True)
            write_json(note, {"latents": folder.name, "folders": times, "images": count})


def _note(config: Config, split: str, root: Path) -> Path:
    tree = to_dict(config)
    decided = json.dumps([tree["data"], tree["vae"], split, "known-1"], sort_keys=True)
    return root / _KNOWN / f"{hashlib.sha256(decided.encode()).hexdigest()[:32]}.json"


def _folder_times(config: Config) -> dict[str, list[int]] | None:
    """Times of ``data.path`` and the folders in the two levels below; of a VAE's files too. None without a folder."""
    path = None if config.data.path is None else home_path(config.data.path)
    if path is None or not path.is_dir():
        return None
    times: dict[str, list[int]] = {}
    vae = home_path(config.vae.name)
    for root, depth in ((path, 2), *([(vae, 0)] if vae.is_dir() else [])):
        _add_times(root, depth, times)
    for file in vae.glob("*.*") if vae.is_dir() else ():
        times[str(file)] = list(stamp(file))
    return times


def _add_times(folder: Path, depth: int, times: dict[str, list[int]], counted: bool = False) -> None:
    """`counted`: whether the file system counts the folders in a folder as links to it, as most do but not all."""
    status = folder.stat()
    times[str(folder)] = [status.st_mtime_ns, status.st_ctime_ns]
    if depth and not (counted and status.st_nlink == _LINKS_OF_A_LEAF):  # which has images alone
        with os.scandir(folder) as entries:
            below = [entry.path for entry in entries if entry.is_dir()]
        counted = status.st_nlink == _LINKS_OF_A_LEAF + len(below)
        for path in below:
            _add_times(Path(path), depth - 1, times, counted)


@contextmanager
def turn_to_write(folder: Path) -> Iterator[bool]:
    """Lock ``folder`` for writing and yield whether it still has to be written; two runs may need the same latents."""
    index = folder / "index.json"
    if index.is_file():  # no lock, as the folder may be read-only
        yield False
        return
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder / ".lock", patience=float("inf")):
        yield not index.is_file()


def write_latents(
    config: Config,
    split: str,
    folder: Path,
    *,
    device: torch.device | str | None = None,
    share: tuple[int, int] = (0, 1),
    shard_rows: int = SHARD_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the missing shards of a ``share`` (k, of) into ``folder``, by default on a GPU if there is one.

    Shards have ``shard_rows`` rows, or fewer if those exceed a gigabyte.
    """
    source = latent_source(config, split, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    count, shard_rows = len(source.labels), rows_of_a_shard(source.row_bytes, shard_rows)
    write_shards(folder, count, source.rows, source.described, share=share, shard_rows=shard_rows, progress=progress)


def latent_source(config: Config, split: str, device: torch.device | str = "cpu") -> Source:
    """The latents of a configuration's images and VAE, computed on ``device`` on access.

    Raises ValueError for images or stored latents that do not fit the VAE.
    """
    data = config.data
    images = open_store(data, split) if data.name in STORES else load_images(data, split)
    if isinstance(images, Store):
        vae = find_vae(config.vae.name, 3, device)
        check_vae(images, vae, data)
        side, sample = images.shape[1], images.sample
    else:
        vae = find_vae(config.vae.name, images.channels, device)
        if images.size % vae.factor:
            raise ValueError(f"{images.size} pixels are not divisible by the factor {vae.factor} of VAE {vae.name!r}")
        side, sample = images.size // vae.factor, False
    stored_channels = vae.channels if sample else 2 * vae.channels
    row_bytes = (1 + data.flip) * stored_channels * side**2 * np.dtype(data.precision).itemsize
    encoding = ["moments-1", "flip" if data.flip else "", "" if data.precision == "float32" else data.precision]
    described = {
        "content": hashlib.sha256(
            f"{images.content} {vae.hash} {' '.join(filter(None, encoding))}".encode()
        ).hexdigest(),
        "shape": [2 * vae.channels, side, side],
        "classes": list(images.classes),
        "pixel_channels": vae.pixel_channels,
        "images": images.content,
        "origin": str(images.origin),
        "vae": {"name": vae.name, "hash": vae.hash},
        "flip": data.flip,
        "sample": sample,
    }
    computed = partial(_rows, images, vae, data)
    rows: Rows = ReadRows(images.batch, computed) if isinstance(images, Images) else computed
    return Source(images.labels, rows, row_bytes, described, images.summary)


def _rows(
    images: Images | Store, vae: VAE, data: DataConfig, indices: np.ndarray, pixels: Tensor | None = None
) -> dict[str, np.ndarray]:
    """The columns of some rows; ``pixels`` are those of images, which were read before."""
    with tf32(False):  # latents are shared by runs of any precision
        if isinstance(images, Store):
            assert isinstance(vae, KLAutoencoder)  # refused by `check_vae`
            moments = _of_store(images, vae, indices, data.flip)
        else:
            assert pixels is not None
            moments = [vae.encode(pixels), *([vae.encode(pixels.flip(3))] if data.flip else [])]
    columns = dict(zip(("moments", "moments_flip"), moments, strict=False))
    for values in columns.values():
        if not values.isfinite().all():
            raise ValueError(f"VAE {vae.name!r} encodes images {indices[0]} to {indices[-1]} to non-finite numbers")
    rows = {name: values.numpy().astype(data.precision) for name, values in columns.items()}
    return {**rows, "labels": images.labels[indices]}


def _of_store(store: Store, vae: KLAutoencoder, indices: np.ndarray, flip: bool) -> list[Float[Tensor, "b ck h w"]]:
    """Both moments in the VAE's units, or only the sample for a store of samples."""
    columns = []
    for mirrored in (False, True)[: 1 + flip]:
        raw = torch.from_numpy(store.read(indices, mirrored))
        both = torch.cat([raw, torch.zeros_like(raw)], dim=1) if store.sample else raw
        columns.append(vae.standardised(both)[:, : raw.shape[1]])
    return columns
