"""Image sets in archives: a zip file of class folders, and WebDataset shards (tar files of samples).

Members are listed once, and images are read directly from the archive. Messages name a member as
``archive.zip!folder/image.png``.
"""

import contextlib
import glob
import io
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int

from workbench.config import DataConfig
from workbench.data.checksums import Progress, cached, load_arrays, save_arrays, settle, stamp
from workbench.data.folder import data_path, read_image, with_masks
from workbench.data.images import Images
from workbench.data.tree import (
    MAX_CLASSES,
    SPLITS,
    SUFFIXES,
    LeftOut,
    Tree,
    arrange,
    class_names,
    images_of_tree,
    in_split,
    is_image,
    joined,
    left_out_reason,
    printable,
    split_folder,
)

MAX_MEMBERS = 20_000_000  # of an archive; ImageNet has 1.3 million images
MAX_MEMBER_BYTES = 1 << 30  # of one image file, which is held in memory
_HEADER_BYTES = 1 << 20  # limit for the extended headers of a tar member
_LABEL_BYTES = 100  # of a .cls file


def load_image_zip(config: DataConfig, path: Path, split: str) -> Images:
    """Load ``path!/[train|test|val/]class/image.png``, also inside enclosing folders.

    Splits and content hash are those of the same tree as a folder. Raises ValueError naming the archive or the member
    that is damaged, encrypted, empty or not an image.
    """
    archive = ZipArchive(path)
    listing = Members(archive)
    tree = arrange(listing, split, unwrap=True)
    names = [listing.raw[tree.prefix + name] for name in tree.names]
    checks = np.array([listing.checksums[tree.prefix + name] for name in tree.names], dtype=np.int64)
    read = partial(_read_zip, archive, names, config.size, config.crop)
    images = images_of_tree(config, split, tree, checks, path, read)
    return with_masks(images, config, path, tree, lambda index: io.BytesIO(archive.read(names[index])))


class ZipArchive:
    """A zip file that each process opens itself, as a handle shared across a fork would share its position."""

    def __init__(self, path: Path):
        self.path, self._process = path, -1
        self._opened: zipfile.ZipFile | None = None

    def __reduce__(self) -> tuple:
        return ZipArchive, (self.path,)

    def members(self) -> list[zipfile.ZipInfo]:
        """All files and folders; ValueError for concatenated archives, of which zipfile reads only the last."""
        members = self._file().infolist()
        if len(members) > MAX_MEMBERS:
            raise ValueError(f"{self.path} has {len(members):,} members; at most {MAX_MEMBERS:,} are read")
        first = min((info.header_offset for info in members), default=0)
        with self.path.open("rb") as file:
            if first and file.read(4) == b"PK\x03\x04":
                raise ValueError(f"{self.path} has another archive in its first {first:,} bytes; unpack both")
        return members

    def read(self, name: str) -> bytes:
        """Read a member and check its checksum."""
        try:
            return self._file().read(name)
        except _ZIP_DAMAGE as error:
            raise ValueError(f"{self.path}!{printable(name)} is damaged or cannot be unpacked: {error}") from error

    def _file(self) -> zipfile.ZipFile:
        if self._opened is None or self._process != os.getpid():
            try:
                if not stat.S_ISREG(os.stat(self.path).st_mode):
                    raise ValueError(f"{self.path} is not a file")
                self._opened = zipfile.ZipFile(self.path)
            except FileNotFoundError as error:
                raise ValueError(f"{self.path} does not exist") from error
            except _ZIP_DAMAGE as error:
                raise ValueError(f"{self.path} is damaged or not a zip archive: {error}") from error
            self._process = os.getpid()
        return self._opened


_ZIP_DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,  # an encrypted member
    NotImplementedError,  # an unknown compression method or version
    UnicodeError,
    OverflowError,
    MemoryError,
)


class Members:
    """The files of a zip archive as a `data.tree.Listing`, with their raw names and checksums by path."""

    def __init__(self, archive: ZipArchive):
        self.where, self.left_out = f"{archive.path}!", LeftOut()
        self.raw: dict[str, str] = {}
        self.checksums: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._folders: dict[str, dict[str, None]] = defaultdict(dict)
        self._files: dict[str, list[str]] = defaultdict(list)
        for info in archive.members():
            self._add(info)

    def folders(self, inside: str) -> list[str]:
        return sorted(self._folders.get(inside, ()))

    def files(self, inside: str) -> list[str]:
        return sorted(self._files.get(inside, ()))

    def walk(self, inside: str) -> Iterator[tuple[str, int]]:
        for name in self.files(inside):
            yield joined(inside, name), self._sizes[joined(inside, name)]
        for name in self.folders(inside):
            yield from self.walk(joined(inside, name))

    def _add(self, info: zipfile.ZipInfo) -> None:
        *folders, file = _parts(info)
        if ".." in folders:
            raise ValueError(f"{self.where}{printable(info.filename)} leads out of the archive")
        for number, name in enumerate(folders, start=1):
            reason = left_out_reason(name, folder=True)
            if reason:
                self.left_out.add(reason, "/".join(folders[:number]))
                return
        for number, name in enumerate(folders):
            self._folders["/".join(folders[:number])][name] = None
        if not file:  # a folder's own entry
            return
        path = "/".join([*folders, file])
        reason = left_out_reason(file, folder=False)
        if reason:
            self.left_out.add(reason, path)
            return
        if path in self.raw:
            raise ValueError(f"{self.where}{printable(path)} is in the archive twice")
        if info.file_size > MAX_MEMBER_BYTES:
            raise ValueError(
                f"{self.where}{printable(path)} unpacks to {info.file_size:,} bytes, more than {MAX_MEMBER_BYTES:,}"
            )
        if stat.S_ISLNK(info.external_attr >> 16) and is_image(file):
            raise ValueError(f"{self.where}{printable(path)} is a link; pack the file it leads to")
        self.raw[path], self.checksums[path], self._sizes[path] = info.filename, info.CRC, info.file_size
        self._files["/".join(folders)].append(file)


def _parts(info: zipfile.ZipInfo) -> list[str]:
    """Folders and file name of a member; the file name is "" for a folder."""
    name = info.filename
    if not info.flag_bits & 0x800 and not name.isascii():  # no UTF-8 flag: zipfile decodes it as cp437
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    if info.create_system == 0:  # DOS and Windows
        name = name.replace("\\", "/")
    *folders, file = name.split("/")
    return [*(part for part in folders if part not in ("", ".")), file]


def _read_zip(archive: ZipArchive, names: list[str], size: int, crop: str, indices: np.ndarray) -> np.ndarray:
    chosen = [names[index] for index in indices]
    return np.stack(
        [read_image(io.BytesIO(archive.read(n)), f"{archive.path}!{printable(n)}", size, crop) for n in chosen]
    )


@dataclass(frozen=True)
class TarIndex:
    """Samples of one tar file in file order: name, offset, size and CRC-32 of each image, and its label."""

    names: list[str]
    offsets: Int[np.ndarray, "n"]
    sizes: Int[np.ndarray, "n"]
    checksums: Int[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]


def load_web_dataset(config: DataConfig, split: str) -> Images:
    """Load samples ``key.jpg`` (or other images) with ``key.cls`` (an integer as text) from uncompressed tar files.

    ``config.path`` is a folder of tar files or a pattern. The split is a subfolder, or the files with train, test, val
    or validation in their names; without either, every tenth image of each class is in the test split. A
    ``classes.txt`` in the folder names the classes, one per line; without it, classes are the numbers from 0 to the
    largest label of any split. Shards without samples are skipped; other members and hidden files are ignored. Raises
    ValueError naming the archive or member that is damaged, empty, or lacks its image or label.
    """
    path = data_path(config, "a folder with .tar files or a pattern such as shards/train-*.tar")
    found = _find_archives(path, split)
    tell = Progress(f"shards of {path} indexed", len(found.archives) + len(found.others))
    indexes = []
    for number, archive in enumerate(found.archives):
        tell(number)
        indexes.append(index_tar(archive))
    empty = [archive.name for archive, index in zip(found.archives, indexes, strict=True) if not index.names]
    if len(empty) == len(indexes):
        raise ValueError(f"{found.archives[0]} has no samples key.jpg with key.cls")
    labels, offsets, sizes, checks = (
        np.concatenate([getattr(index, column) for index in indexes])
        for column in ("labels", "offsets", "sizes", "checksums")
    )
    elsewhere = [int(index_tar(archive).labels.max(initial=0)) for archive in found.others]
    classes = class_names([found.folder], max(int(labels.max()), *elsewhere, 0))
    kept = _share(labels, split, found.divided)
    if not len(kept):
        raise ValueError(f"{path} has no images for the {split} split")
    names = [name for index in indexes for name in index.names]
    numbers = np.repeat(np.arange(len(found.archives)), [len(index.names) for index in indexes])
    notes = list(found.notes)
    if empty:
        notes.append(f"{len(empty)} shard{'s' if len(empty) > 1 else ''} without samples ({empty[0]})")
    absent = len(classes) - len(np.unique(labels[kept]))
    if absent:
        notes.append(f"no {split} images of {absent} class{'es' if absent > 1 else ''}")
    tree = Tree(classes, [names[place] for place in kept], sizes[kept], labels[kept], notes=tuple(notes))
    read = partial(_read_tar, found.archives, numbers[kept], offsets[kept], tree, config.size, config.crop)
    return images_of_tree(config, split, tree, checks[kept], path, read)


def _share(labels: Int[np.ndarray, "n"], split: str, divided: bool) -> Int[np.ndarray, "m"]:
    """Indices of the split's images, in order."""
    if divided:
        return np.arange(len(labels))
    kept = []
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        kept += [index for number, index in enumerate(indices.tolist()) if in_split(number, split)]
    return np.sort(np.array(kept, dtype=np.int64))


def index_tar(path: Path) -> TarIndex:
    """Index the samples of a tar file; the result is cached, as indexing has to read every byte."""
    version = stamp(path)
    settle(np.array([version], dtype=np.int64))
    kept = cached(f"tar-2 {path.resolve()} {version}")
    known = load_arrays(kept, ("names", "offsets", "sizes", "checksums", "labels"))
    if known is not None:
        text = known.pop("names").tobytes().decode("utf-8", "surrogateescape")
        return TarIndex(text.split("\0") if text else [], **known)
    index = _scan_tar(path)
    if stamp(path) != version:
        raise ValueError(f"{path} changed while it was read")
    columns = {name: getattr(index, name) for name in ("offsets", "sizes", "checksums", "labels")}
    names = np.frombuffer("\0".join(index.names).encode("utf-8", "surrogateescape"), np.uint8)
    save_arrays(kept, {"names": names, **columns})
    return index


def _scan_tar(path: Path) -> TarIndex:
    """All samples of a file, which may be several concatenated archives (``cat a.tar b.tar``)."""
    samples: list[dict[str, Any]] = []
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("it is not a file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start: int | None = 0
            if size == 0:
                raise tarfile.ReadError("it is empty")
            while start is not None:
                found, start = _scan_part(path, file, start, size)
                samples += found
                if len(samples) > MAX_MEMBERS:
                    raise ValueError(f"{path} has more than {MAX_MEMBERS:,} samples")
    # tarfile raises many kinds of errors for invalid headers.
    except (tarfile.TarError, OSError, EOFError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or not an uncompressed tar archive: {error}") from error
    for sample in samples:
        if "label" not in sample:
            raise ValueError(f"{path}!{printable(sample['image'][0])} has no label {printable(sample['key'])}.cls")
        if "image" not in sample:
            raise ValueError(f"{path}!{printable(sample['key'])}.cls has no image ({', '.join(SUFFIXES)})")
    images = [sample["image"] for sample in samples]
    offsets, sizes, checks = (np.array([image[k] for image in images], dtype=np.int64) for k in (1, 2, 3))
    labels = np.array([sample["label"] for sample in samples], dtype=np.int64)
    return TarIndex([image[0] for image in images], offsets, sizes, checks, labels)


class _Bounded:
    """A file that refuses to read more at once than the limit for a tar header."""

    def __init__(self, file: BinaryIO):
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes; at most {_HEADER_BYTES:,} are read")
        return self._file.read(size)


def _scan_part(path: Path, file: BinaryIO, start: int, size: int) -> tuple[list[dict[str, Any]], int | None]:
    """The samples of the archive that begins at ``start``, and the start of the next one, or None."""
    samples: dict[str, dict[str, Any]] = {}
    file.seek(start)
    # The stub of tarfile also asks for `write` and `close`, which reading does not use.
    with tarfile.open(fileobj=_Bounded(file), mode="r:") as archive:  # type: ignore[call-overload]
        for member in archive:
            name = member.name
            stem, _, suffix = os.path.basename(name).partition(".")
            wanted = f".{suffix.lower()}" in SUFFIXES or suffix.lower() == "cls"
            folders = os.path.dirname(name).split("/")
            if not stem or not wanted or any(folder != "." and left_out_reason(folder, True) for folder in folders):
                continue  # the webdataset package skips names that begin with a dot, too
            if not member.isreg() or member.issparse():
                raise ValueError(f"{path}!{printable(name)} is not a regular file; pack the file itself")
            key = os.path.join(os.path.dirname(name), stem)
            sample = samples.setdefault(key, {"key": key})
            if suffix.lower() == "cls":
                if "label" in sample:
                    raise ValueError(f"{path}!{printable(name)} is a second label of its sample")
                sample["label"] = _read_label(archive, member, path)
                continue
            if "image" in sample:
                raise ValueError(f"{path}!{printable(name)} is a second image of its sample")
            if member.size == 0:
                raise ValueError(f"{path}!{printable(name)} is empty")
            if member.size > MAX_MEMBER_BYTES:
                raise ValueError(
                    f"{path}!{printable(name)} has {member.size:,} bytes; at most {MAX_MEMBER_BYTES:,} are read"
                )
            sample["image"] = (name, member.offset_data, member.size, _checksum(file, member))
        # tarfile treats a truncated header as the end of the archive.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it ends without an end mark")
    return list(samples.values()), _next_part(file, size)


def _next_part(file: BinaryIO, size: int) -> int | None:
    """Offset after the padding at the end of an archive; None at the end of the file."""
    while file.tell() < size:
        block = file.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0"):
            return file.tell() - len(block)
    return None


def _checksum(file: BinaryIO, member: tarfile.TarInfo) -> int:
    file.seek(member.offset_data)
    value, left = 0, member.size
    while left:
        chunk = file.read(min(left, _HEADER_BYTES))
        if not chunk:
            raise tarfile.ReadError(f"{printable(member.name)} is cut short")
        value, left = zlib.crc32(chunk, value), left - len(chunk)
    return value


def _read_label(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    file = archive.extractfile(member)
    assert file is not None  # a regular member, as checked by the caller
    text = file.read(_LABEL_BYTES).decode(errors="replace").strip()
    if not (text.isascii() and text.isdecimal()) or member.size > _LABEL_BYTES:
        raise ValueError(f"{path}!{printable(member.name)} holds {text!r}, not a class number")
    if len(text) > len(str(MAX_CLASSES)) + 20 or int(text) >= MAX_CLASSES:
        raise ValueError(
            f"{path}!{printable(member.name)} holds {text}; class numbers go from 0 to at most {MAX_CLASSES - 1:,}"
        )
    return int(text)


@dataclass(frozen=True)
class Shards:
    """Tar files of a split and of the other split; ``divided`` if the files are already separated by split."""

    folder: Path
    archives: list[Path]
    others: list[Path]
    divided: bool
    notes: tuple[str, ...] = ()


def _find_archives(path: Path, split: str) -> Shards:
    """The split's archives sorted by name, and the folder of an optional classes.txt."""
    other = "train" if split == "test" else "test"
    if path.is_dir():
        folders = sorted(child.name for child in path.iterdir() if child.is_dir() and child.name[0] != ".")
        part = split_folder(folders, split, str(path))
        folder, found = path, _tar_files(path / (part or ""))
        if part:
            rest = [name for name in folders if name.lower() in SPLITS[other]]
            other_part = split_folder(rest, other, str(path)) if rest else None
            others = _tar_files(path / other_part) if other_part else []
            return Shards(folder, _some(found, path / part), others, True)
        inner = [f"{name}/" for name in folders if _tar_files(path / name)]
        notes = (f"folders with .tar files beside the shards ({', '.join(inner[:3])})",) if inner and found else ()
        if inner and not found:
            where = ", ".join(inner[:3])
            raise ValueError(f"there are no .tar files at {path}, only in {where}; give a pattern: {path}/*/*.tar")
    else:
        folder, notes = path.parent, ()
        try:
            found = [path] if path.is_file() else sorted(Path(name) for name in glob.glob(str(path)))
        except re.error as error:
            raise ValueError(f"data.path {path} is not a valid file name pattern: {error}") from error
        _refuse_packed(found)
    words = {archive: set(re.split("[^a-z]+", archive.name.lower())) for archive in _some(found, path)}
    if not any(words[archive] & {*SPLITS["train"], *SPLITS["test"]} for archive in found):
        return Shards(folder, found, [], False, notes)
    chosen, others = ([archive for archive in found if words[archive] & {*SPLITS[part]}] for part in (split, other))
    if not chosen:
        raise ValueError(f"no .tar file at {path} has {' or '.join(SPLITS[split][:3])} in its name")
    unnamed = [archive.name for archive in found if archive not in chosen and archive not in others]
    if unnamed:
        notes = (*notes, f"{len(unnamed)} shards without a split in their names ({unnamed[0]})")
    return Shards(folder, chosen, others, True, notes)


def _some(found: list[Path], path: Path) -> list[Path]:
    if not found:
        raise ValueError(f"there are no .tar files at {path}")
    return found


def _tar_files(folder: Path) -> list[Path]:
    """Tar files directly in a folder; ValueError for compressed ones, which have no random access."""
    files = [file for file in sorted(folder.iterdir()) if file.name[0] != "." and not file.is_dir()]
    _refuse_packed(files)
    return [file for file in files if file.suffix.lower() == ".tar"]


def _refuse_packed(files: list[Path]) -> None:
    for file in files:
        if file.name.lower().endswith((".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")):
            raise ValueError(f"{file} is a compressed shard, which does not allow random access: unpack it to .tar")


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
        images.append(read_image(io.BytesIO(raw), f"{archive}!{printable(tree.names[i])}", size, crop))
    return np.stack(images)
