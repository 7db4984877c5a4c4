"""Image sets inside archives: a zip file of class folders, and web-dataset shards (tar files of numbered samples).

Members are listed once; an image is read where it lies. Errors call a member ``archive.zip!folder/image.png``.
"""

import contextlib
import glob
import hashlib
import io
import os
import re
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from workbench.config import DataConfig
from workbench.data.folder import (
    SPLITS,
    SUFFIXES,
    Tree,
    choose,
    class_names,
    data_path,
    images_of_tree,
    in_split,
    read_image,
    split_folder,
)
from workbench.data.images import Images
from workbench.files import write_atomically


def load_image_zip(config: DataConfig, path: Path, split: str) -> Images:
    """``path!/[train|test|val/]class/image.png``, also when one folder encloses all that.

    Divided and hashed as a folder is. ValueError naming the archive or the member that is damaged, encrypted, empty
    or no image.
    """
    archive = ZipArchive(path)
    members = archive.members()
    enclosing = {name.split("/")[0] for name in members}
    prefix = ""
    undivided = enclosing.isdisjoint(part for parts in SPLITS.values() for part in parts)
    if len(enclosing) == 1 and undivided and all(name.count("/") > 1 for name in members):
        prefix = f"{enclosing.pop()}/"
    tops = {name.removeprefix(prefix).split("/")[0] for name in members if "/" in name.removeprefix(prefix)}
    part = split_folder(tops, split, f"{path}!{prefix}".rstrip("!/"))
    prefix += f"{part}/" if part else ""
    files = [(n.removeprefix(prefix), size) for n, size in members.items() if n.startswith(prefix)]
    files = [
        (name, size) for name, size in files if "/" in name
    ]  # as in a folder, files beside the classes are not read
    classes = sorted({name.split("/")[0] for name, _ in files})
    tree = choose(files, classes, split, part is not None, f"{path}!{prefix}")
    read = partial(_read_zip, archive, [prefix + name for name in tree.names], config.size, config.crop)
    return images_of_tree(config, split, tree, path, read)


class ZipArchive:
    """A zip file that each process opens for itself: a handle shared across a fork would share its position."""

    def __init__(self, path: Path):
        self.path, self._process, self._opened = path, -1, None

    def __reduce__(self) -> tuple:
        return ZipArchive, (self.path,)

    def members(self) -> dict[str, int]:
        """Names and sizes of all files."""
        return {info.filename: info.file_size for info in self._file().infolist() if not info.is_dir()}

    def read(self, name: str) -> bytes:
        """The content of a member, checked against its checksum."""
        try:
            return self._file().read(name)
        # The last two are what zipfile raises for encrypted members and for methods that it does not know.
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"{self.path}!{name} is damaged or cannot be unpacked: {error}") from error

    def _file(self) -> zipfile.ZipFile:
        if self._process != os.getpid():
            try:
                self._opened = zipfile.ZipFile(self.path)
            except FileNotFoundError as error:
                raise ValueError(f"{self.path} does not exist") from error
            except (zipfile.BadZipFile, OSError) as error:
                raise ValueError(f"{self.path} is damaged or not a zip archive: {error}") from error
            self._process = os.getpid()
        return self._opened


def _read_zip(archive: ZipArchive, names: list[str], size: int, crop: str, indices: np.ndarray) -> np.ndarray:
    chosen = [names[index] for index in indices]
    return np.stack([read_image(io.BytesIO(archive.read(n)), f"{archive.path}!{n}", size, crop) for n in chosen])


@dataclass(frozen=True)
class TarIndex:
    """The samples of one tar file in its order: names, places and sizes of the images, and their labels."""

    names: list[str]
    offsets: Int[np.ndarray, "n"]
    sizes: Int[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]


def load_web_dataset(config: DataConfig, split: str) -> Images:
    """Samples ``key.jpg`` (or another image) with ``key.cls`` (a whole number as text) in uncompressed tar files.

    ``config.path`` is a folder of them or a pattern. The split is a subfolder, or the files with the word train,
    test, val or validation in their names; where there are neither, every tenth image of each class is for tests.
    A ``classes.txt`` in the folder names the classes, one a line; without it they are numbers. Other members are
    left alone. ValueError naming the archive or member that is damaged, empty, or half of a sample.
    """
    path = data_path(config, "a folder with .tar files or a pattern such as shards/train-*.tar")
    folder, archives, divided = _find_archives(path, split)
    indexes = [index_tar(archive) for archive in archives]
    labels, offsets, sizes = (
        np.concatenate([getattr(index, column) for index in indexes]) for column in ("labels", "offsets", "sizes")
    )
    classes = class_names(folder, labels)
    kept = _share(labels, split, divided)
    if not len(kept):
        raise ValueError(f"{path} holds no images for the {split} split")
    names = [name for index in indexes for name in index.names]
    numbers = np.repeat(np.arange(len(archives)), [len(index.names) for index in indexes])
    tree = Tree(classes, [names[place] for place in kept], sizes[kept], labels[kept])
    read = partial(_read_tar, archives, numbers[kept], offsets[kept], tree, config.size, config.crop)
    return images_of_tree(config, split, tree, path, read)


def _share(labels: Int[np.ndarray, "n"], split: str, divided: bool) -> Int[np.ndarray, "m"]:
    """Places of the split's images, in order."""
    if divided:
        return np.arange(len(labels))
    kept = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        kept += [place for number, place in enumerate(places.tolist()) if in_split(number, split)]
    return np.sort(np.array(kept, dtype=np.int64))


def index_tar(path: Path) -> TarIndex:
    """The samples of a tar file; what was found is kept in the user's cache, since every header has to be visited."""
    try:
        stat = path.stat()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} tar-1".encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    kept = cache / "workbench" / "indexes" / f"{key[:32]}.npz"
    try:
        with np.load(kept) as arrays:
            names = arrays["names"].tobytes().decode().split("\0")
            return TarIndex(names, arrays["offsets"], arrays["sizes"], arrays["labels"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        index = _scan_tar(path)
    arrays = {"offsets": index.offsets, "sizes": index.sizes, "labels": index.labels}
    buffer = io.BytesIO()
    np.savez(buffer, names=np.frombuffer("\0".join(index.names).encode(), np.uint8), **arrays)
    with contextlib.suppress(OSError):  # a cache that cannot be written is only slow
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, buffer.getvalue())
    return index


def _scan_tar(path: Path) -> TarIndex:
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                stem, dot, suffix = os.path.basename(member.name).partition(".")
                sample = samples.setdefault(os.path.join(os.path.dirname(member.name), stem), {})
                if member.isreg() and f".{suffix.lower()}" in SUFFIXES:
                    if "image" in sample:
                        raise ValueError(f"{path}!{member.name} is a second image of its sample")
                    if member.size == 0:
                        raise ValueError(f"{path}!{member.name} is empty")
                    sample["image"] = (member.name, member.offset_data, member.size)
                elif member.isreg() and suffix.lower() == "cls":
                    sample["label"] = _read_label(archive, member, path)
            # tarfile takes a header cut short for the end.
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it ends without an end mark")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged or not an uncompressed tar archive: {error}") from error
    samples = {key: sample for key, sample in samples.items() if sample}
    for key, sample in samples.items():
        if "label" not in sample:
            raise ValueError(f"{path}!{sample['image'][0]} has no label {key}.cls")
        if "image" not in sample:
            raise ValueError(f"{path}!{key}.cls has no image ({', '.join(SUFFIXES)})")
    if not samples:
        raise ValueError(f"{path} holds no samples key.jpg with key.cls")
    names, offsets, sizes = zip(*(sample["image"] for sample in samples.values()), strict=True)
    labels = [sample["label"] for sample in samples.values()]
    return TarIndex(list(names), *(np.array(column, dtype=np.int64) for column in (offsets, sizes, labels)))


def _read_label(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    text = archive.extractfile(member).read(100).decode(errors="replace").strip()
    if not text.isdecimal():
        raise ValueError(f"{path}!{member.name} holds {text!r}, not a class number")
    return int(text)


def _find_archives(path: Path, split: str) -> tuple[Path, list[Path], bool]:
    """The folder where classes.txt may lie, the split's archives in order of name, and whether they are all of it."""
    if path.is_dir():
        part = split_folder({child.name for child in path.iterdir() if child.is_dir()}, split, str(path))
        folder, found = path, sorted((path / (part or "")).glob("*.tar"))
    else:
        part, folder = None, path.parent
        found = sorted(Path(name) for name in glob.glob(str(path)))
    if not found:
        raise ValueError(f"there are no .tar files at {path}")
    if part:
        return folder, found, True
    words = {archive: set(re.split("[^a-z]+", archive.name.lower())) for archive in found}
    if not any(words[archive] & {*SPLITS["train"], *SPLITS["test"]} for archive in found):
        return folder, found, False
    chosen = [archive for archive in found if words[archive] & {*SPLITS[split]}]
    if not chosen:
        raise ValueError(f"no .tar file at {path} has {' or '.join(SPLITS[split])} in its name")
    return folder, chosen, True


def _read_tar(
    archives: list[Path],
    numbers: Int[np.ndarray, "n"],
    offsets: Int[np.ndarray, "n"],
    tree: Tree,
    size: int,
    crop: str,
    indices: np.ndarray,
) -> np.ndarray:
    images = []
    for i in indices.tolist():
        archive = archives[numbers[i]]
        with archive.open("rb", buffering=0) as file:
            file.seek(offsets[i])
            raw = file.read(tree.sizes[i])
        images.append(read_image(io.BytesIO(raw), f"{archive}!{tree.names[i]}", size, crop))
    return np.stack(images)
