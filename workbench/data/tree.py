"""Interpret the names in an image folder or archive: splits, classes, and files that are left out.

The rules are those of torchvision's `ImageFolder`: each folder is a class, labels number the folders in alphabetical
order, images may be at any depth below, links are followed. Anything else is left out and reported
(`Images.summary`), or raises an error that names it. Nothing is relabelled or dropped silently.
"""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from workbench.config import DataConfig
from workbench.data.images import Images

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# The first three names of each split are the common ones. Case is ignored.
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "val", "validation", "valid", "testing", "eval", "dev"),
}
MAX_CLASSES = 100_000  # a very large label is more likely damage than a class, and each class costs a row of weights
# Names that macOS, Windows, NAS devices and file systems create.
_SYSTEM_FOLDERS = ("__macosx", "$recycle.bin", "system volume information", "lost+found", "@eadir", "#recycle")
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")


@dataclass(frozen=True)
class Tree:
    """The images of one split, by class and name.

    ``names`` are relative to the folder of the classes (class/image.png), which is ``prefix`` below the root. ``notes``
    list what was left out and anything unexpected.
    """

    classes: tuple[str, ...]
    names: list[str]
    sizes: Int[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]
    prefix: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class LeftOut:
    """Names that were left out, by reason, without duplicates."""

    names: dict[str, dict[str, None]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.names.setdefault(reason, {})[name] = None

    def notes(self) -> list[str]:
        """One line such as "left out: 2 hidden files (cat/.DS_Store, dog/.DS_Store)"; empty if nothing was left out."""
        kinds = [
            f"{len(names):,} {reason}{'s' if len(names) > 1 else ''} ({_few(names)})"
            for reason, names in sorted(self.names.items())
        ]
        return [f"left out: {', '.join(kinds)}"] if kinds else []


@runtime_checkable
class Listing(Protocol):
    """The files below a root. Messages name a file as ``where`` + name; folder names have no trailing slash."""

    where: str
    left_out: LeftOut

    def folders(self, inside: str) -> list[str]:
        """Names of the folders directly in a folder ("" for the root), hidden ones left out."""
        ...

    def files(self, inside: str) -> list[str]:
        """Names of the files directly in a folder, hidden ones left out."""
        ...

    def walk(self, inside: str) -> Iterator[tuple[str, int]]:
        """Path relative to the root and size in bytes of every file below a folder, hidden ones left out."""
        ...


def left_out_reason(name: str, folder: bool) -> str | None:
    """Reason why a file or folder of this name is left out of an image set; None if it is not."""
    kind = "folder" if folder else "file"
    if name.startswith("."):
        return f"hidden {kind}"
    if name.lower() in (_SYSTEM_FOLDERS if folder else _SYSTEM_FILES):
        return f"system {kind}"
    return None


def arrange(listing: Listing, split: str, *, unwrap: bool) -> Tree:
    """Images of a split and their labels; without split folders, every tenth image of a class is in the test split.

    A class has the same label in every split: the classes are those of all splits together. With ``unwrap``, folders
    that enclose everything are removed, as is common in archives. Raises ValueError, naming the cause, for a missing
    split, a class folder without images, a file that is empty or not an image, and a tree whose classes seem to be one
    folder deeper.
    """
    base = _enclosing(listing) if unwrap else ""
    where = _shown(listing, base)
    parts, notes = _split_folders(listing, base)
    if parts and split not in parts:
        allowed = " or ".join(SPLITS[split][:3])
        raise ValueError(f"{where} has no folder {allowed} for the {split} split")
    prefix = f"{base}{parts[split]}/" if parts else base
    raw = _class_folders(listing, prefix.rstrip("/"))
    if not raw:
        direct = [name for name in listing.files(prefix.rstrip("/")) if is_image(name)]
        hint = f", only images such as {printable(direct[0])}; each class needs a folder" if direct else ""
        raise ValueError(f"{_shown(listing, prefix)} holds no class folders{hint}")
    others = {other: set(_class_folders(listing, f"{base}{parts[other]}")) for other in parts if other != split}
    classes = sorted(set(raw).union(*others.values()))
    if len(classes) > MAX_CLASSES:
        raise ValueError(f"{where} has {len(classes):,} class folders; at most {MAX_CLASSES:,} are allowed")
    for other, folders in others.items():
        if folders and folders.isdisjoint(raw):
            raise ValueError(
                f"the class folders of {_shown(listing, prefix)} ({_few(raw)}) and of "
                f"{_shown(listing, f'{base}{parts[other]}/')} ({_few(folders)}) have no name in common"
            )
    files = {name: sorted(listing.walk(prefix + raw[name])) for name in classes if name in raw}
    found = {
        name: [(path.removeprefix(prefix), size) for path, size in below if is_image(path)]
        for name, below in files.items()
    }
    if any(found.values()):
        _refuse_one_too_high(found, raw, listing, prefix)
    for path, size in (entry for below in files.values() for entry in below):
        if not is_image(path):
            raise ValueError(f"{listing.where}{printable(path)} is not an image file ({', '.join(SUFFIXES)})")
        if size == 0:
            raise ValueError(f"{listing.where}{printable(path)} is empty")
    if not any(found.values()):
        raise ValueError(f"{_shown(listing, prefix)} holds no images for the {split} split")
    empty = [name for name, files in found.items() if not files and not any(name in names for names in others.values())]
    if empty:
        raise ValueError(f"{listing.where}{prefix}{printable(raw[empty[0]])} is a class folder without images")
    rows = [
        (file, size, label)
        for label, name in enumerate(classes)
        for place, (file, size) in enumerate(found.get(name, []))
        if parts or in_split(place, split)
    ]
    if not rows:
        raise ValueError(f"{_shown(listing, prefix)} holds no images for the {split} split")
    names, sizes, labels = zip(*rows, strict=True)
    absent = [name for number, name in enumerate(classes) if number not in set(labels)]
    if absent:
        notes.append(f"no {split} images of {len(absent)} class{'es' if len(absent) > 1 else ''} ({_few(absent)})")
    if all(name.isdecimal() for name in classes) and sorted(classes, key=int) != classes:
        wrong = next(number for number, name in enumerate(classes) if int(name) != number)
        notes.append(f"labels number the folders in alphabetical order: folder {classes[wrong]} is {wrong}")
    # torchvision does not read files beside the class or split folders either.
    for folder in {base.rstrip("/"), prefix.rstrip("/")}:
        for name in listing.files(folder):
            listing.left_out.add("stray file", joined(folder, name))
    return Tree(
        tuple(classes),
        list(names),
        np.array(sizes, dtype=np.int64),
        np.array(labels, dtype=np.int64),
        prefix,
        (*listing.left_out.notes(), *notes),
    )


def split_folder(folders: Iterable[str], split: str, where: str) -> str | None:
    """Name of the split's folder; None if there are no split folders, ValueError if there is only the other split."""
    lower = {name.lower(): name for name in folders}
    found = next((lower[name] for name in SPLITS[split] if name in lower), None)
    if found is None and any(name in lower for names in SPLITS.values() for name in names):
        raise ValueError(f"{where} has no folder {' or '.join(SPLITS[split][:3])} for the {split} split")
    return found


def in_split(place: int, split: str) -> bool:
    """Whether image number ``place`` of a class is in this split of an undivided set: every tenth is for testing."""
    return (place % 10 == 9) == (split == "test")


def is_image(name: str) -> bool:
    """Whether a file has the suffix of a supported image format."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def joined(inside: str, name: str) -> str:
    """Path of a name in a folder of a listing; the root is ""."""
    return f"{inside}/{name}" if inside else name


def printable(name: str) -> str:
    """A file name as printable text, with control characters and bytes that are not UTF-8 escaped as \\xe9."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return unicodedata.normalize("NFC", text)


def class_names(folders: Sequence[Path], largest: int) -> tuple[str, ...]:
    """Lines of ``classes.txt`` in the first of ``folders`` that has one, else the numbers from 0 to ``largest``.

    Raises ValueError if the file has no line for the largest label, is not UTF-8, or has an empty line between others.
    """
    if largest >= MAX_CLASSES:
        raise ValueError(f"{folders[0]} has a label {largest}; labels count from 0 to at most {MAX_CLASSES - 1:,}")
    file = next((folder / "classes.txt" for folder in folders if (folder / "classes.txt").is_file()), None)
    if file is None:
        return tuple(str(label) for label in range(largest + 1))
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        line, byte = error.object[: error.start].count(b"\n") + 1, error.object[error.start]
        raise ValueError(f"{file} is not UTF-8: line {line} has the byte {byte:#x}") from error
    names = tuple(line.strip() for line in lines)
    if "" in names:
        raise ValueError(f"{file} has an empty line {names.index('') + 1}; line k names the class of label k - 1")
    if largest >= len(names):
        raise ValueError(f"{file} names {len(names)} classes, but there is a label {largest} (they count from 0)")
    if len(names) > MAX_CLASSES:
        raise ValueError(f"{file} names {len(names):,} classes; at most {MAX_CLASSES:,} are allowed")
    return names


def images_of_tree(
    config: DataConfig,
    split: str,
    tree: Tree,
    checksums: Int[np.ndarray, "n"],
    origin: Path,
    read: Callable[[np.ndarray], np.ndarray],
) -> Images:
    """The image set of a tree; its content hash covers classes, names, CRC-32 of the files, and labels."""
    digest = hashlib.sha256("\0".join(["images-2", str(config.size), config.crop, *tree.classes]).encode())
    for name, checksum, label in zip(tree.names, checksums.tolist(), tree.labels.tolist(), strict=True):
        digest.update(f"{name} {checksum:08x} {label}\n".encode("utf-8", "surrogateescape"))
    return Images(
        name=config.name,
        split=split,
        labels=tree.labels,
        classes=tree.classes,
        channels=3,
        size=config.size,
        origin=printable(str(origin)),
        content=digest.hexdigest(),
        read=read,
        notes=tree.notes,
    )


def _enclosing(listing: Listing) -> str:
    """Path, with a trailing slash, of the folders that enclose all images of an archive and are no split or class."""
    base = ""
    while True:
        folders = listing.folders(base.rstrip("/"))
        if len(folders) != 1 or folders[0].lower() in _SPLIT_NAMES:
            return base
        inside = f"{base}{folders[0]}"
        if not listing.folders(inside) or any(is_image(name) for name in listing.files(inside)):
            return base
        for name in listing.files(base.rstrip("/")):
            listing.left_out.add("stray file", f"{base}{name}")
        base = f"{inside}/"


def _split_folders(listing: Listing, base: str) -> tuple[dict[str, str], list[str]]:
    """Folder of each split, and notes; empty for a set without split folders.

    A folder with the name of a split is a class ("train" beside "bus") if it has images directly inside.
    """
    folders = listing.folders(base.rstrip("/"))
    lower = {
        name.lower(): name
        for name in folders
        if name.lower() in _SPLIT_NAMES
        and listing.folders(base + name)
        and not any(is_image(file) for file in listing.files(base + name))
    }
    parts = {}
    for split, names in SPLITS.items():
        found = [lower[name] for name in names if name in lower]
        if found:
            parts[split] = found[0]
    beside = [name for name in folders if name not in parts.values()]
    if not parts or not beside:
        return parts, []
    with_images = [name for name in beside if any(is_image(file) for file in listing.files(base + name))]
    if len(parts) == 1 and with_images:
        (split, name), where = next(iter(parts.items())), _shown(listing, base)
        raise ValueError(
            f"{where} has a folder {name}, as for the {split} split, and folders of images beside it "
            f"({_few(with_images)}): rename {name} if it is a class, or move the others away"
        )
    return parts, [f"folder{'s' if len(beside) > 1 else ''} beside the splits ({_few(beside)})"]


def _class_folders(listing: Listing, inside: str) -> dict[str, str]:
    """Printable class names, and the folders' raw names."""
    found: dict[str, str] = {}
    for name in listing.folders(inside):
        other = found.setdefault(printable(name), name)
        if other != name:
            raise ValueError(f"{listing.where}{inside} has two folders that are both printed as {printable(name)!r}")
    return found


def _refuse_one_too_high(
    found: dict[str, list[tuple[str, int]]], raw: dict[str, str], listing: Listing, prefix: str
) -> None:
    """Raise ValueError if the class folders look like parents of the real classes.

    This is the case if no class folder has images directly inside, and either there is one class with several
    subfolders, or all classes have the same subfolders.
    """
    below = []
    for name, files in found.items():
        inside = [file.removeprefix(f"{raw[name]}/").split("/") for file, _ in files]
        if any(len(parts) == 1 for parts in inside):
            return
        # Folders that enclose all files of the class are skipped.
        while inside and len({parts[0] for parts in inside}) == 1 and all(len(parts) > 2 for parts in inside):
            inside = [parts[1:] for parts in inside]
        if any(len(parts) == 1 for parts in inside):
            return
        below.append({parts[0] for parts in inside})
    below = [names for names in below if names]
    if len(below[0]) < 2 or any(names != below[0] for names in below):
        return
    names, where = _few(found), _shown(listing, prefix)
    what = f"one class, {names}, whose images are" if len(below) == 1 else f"the classes {names}, whose images all are"
    raise ValueError(
        f"{where} would be {what} in folders {_few(below[0])}: is data.path one folder too high? "
        "A class must have at least one image that is not in a subfolder"
    )


def _shown(listing: Listing, prefix: str) -> str:
    return f"{listing.where}{printable(prefix)}".rstrip("/!")


def _few(names: Iterable[str]) -> str:
    """The first three names, in order."""
    ordered = [printable(name) for name in sorted(names)]
    return ", ".join(ordered[:3]) + (", ..." if len(ordered) > 3 else "")


_SPLIT_NAMES = {name for names in SPLITS.values() for name in names}
