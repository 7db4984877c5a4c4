"""Cut-outs of photographs on crops of scikit-learn's photographs (`data.scenes`), with masks.

Debian's package tuxpaint-stamps-default has some hundred: animals, food, plants and more (Bill Kendrick and others,
GPL-2). They are read where the package installs them and are no part of the workbench.
"""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from workbench.config import DataConfig
from workbench.data.checksums import checksums
from workbench.data.folder import DAMAGE, MAX_PIXELS, Folder
from workbench.data.images import Images
from workbench.data.scenes import CutOuts, scenes
from workbench.data.tree import in_split, printable
from workbench.diffusion.randomness import permutation
from workbench.files import home_path

_INSTALLED = "/usr/share/tuxpaint/stamps"
_DRAWINGS = {"cartoon", "symbols"}  # folders of the package without photographs
_SIDE = 64  # pixels of a cut-out's square
_SCENES = 40  # with each cut-out
_FEWEST = 10  # cut-outs of a class; one of ten is for the test scenes


def load(config: DataConfig, split: str) -> Images:
    """Scenes of 32 or 64 pixels (``data.size``), forty with each cut-out; every tenth cut-out is in the test split.

    ``data.path`` is a folder with one folder for each class, which has transparent PNG files at any depth, by default
    that of the package. Classes of fewer than ten cut-outs are left out. Raises ValueError for a folder without any.
    """
    root = home_path(config.path or _INSTALLED)
    if not root.is_dir():
        raise ValueError(
            f"there are no cut-outs at {root}: apt-get install tuxpaint-stamps-default, or set data.path to a folder "
            f"of class folders with transparent PNG files"
        )
    listing, found = Folder(root), {}
    for name in listing.folders(""):
        files = sorted(path for path, _ in listing.walk(name) if _is_cut_out(path)) if name not in _DRAWINGS else []
        if len(files) >= _FEWEST:
            found[name] = files
    if not found:
        raise ValueError(f"{root} has no folder with {_FEWEST} or more transparent PNG files, which are the cut-outs")
    classes = tuple(map(printable, found))
    chosen = [
        (label, file)
        for label, files in enumerate(found.values())
        for place, file in enumerate(files)
        if in_split(place, split)
    ]
    order = permutation(0, f"stamps {split}", 0, len(chosen))  # so that the first scenes are of every class
    labels, names = np.array([chosen[i][0] for i in order]), [chosen[i][1] for i in order]
    sums = checksums(root, names, kind=f"stamps-{split}")
    digest = hashlib.sha256("\0".join(["stamps-1", *classes]).encode())
    for name, checksum, label in zip(names, sums.tolist(), labels.tolist(), strict=True):
        digest.update(f"{name} {checksum:08x} {label}\n".encode("utf-8", "surrogateescape"))
    read = cache(lambda: np.stack([_read(root / name) for name in names]))  # when the first scene is made

    def paint(rows: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _painted(read()[rows % len(names)])

    origin, content = printable(str(root)), digest.hexdigest()
    return scenes(config, split, CutOuts("stamps", np.tile(labels, _SCENES), classes, origin, content, 0, paint))


def _is_cut_out(path: str) -> bool:
    return path.lower().endswith(".png") and not _DRAWINGS & set(path.split("/"))


def _read(file: Path) -> UInt8[np.ndarray, "4 k k"]:
    """A cut-out as premultiplied RGBA, its longer side scaled to the square's; ValueError naming a damaged file."""
    name = printable(str(file))
    try:
        with Image.open(file, formats=("PNG",)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"it has {opened.width}x{opened.height} pixels, at most {MAX_PIXELS:,} are read")
            image = opened.convert("RGBA").convert("RGBa")
    except DAMAGE as error:
        raise ValueError(f"{name} is damaged or not a PNG image: {error}") from error
    scale = _SIDE / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    square = Image.new("RGBa", (_SIDE, _SIDE))
    square.paste(image.resize((width, height), Image.Resampling.LANCZOS), ((_SIDE - width) // 2, (_SIDE - height) // 2))
    pixels = np.asarray(square).transpose(2, 0, 1)
    most = pixels[3].max()
    if not most:
        raise ValueError(f"{name} is transparent everywhere: it shows no object")
    return (pixels * (255 / most) + 0.5).clip(0, 255).astype(np.uint8)  # shadows and ghosts are objects too


def _painted(
    cut_outs: UInt8[np.ndarray, "b 4 k k"],
) -> tuple[Float32[np.ndarray, "b 4 k k"], Float32[np.ndarray, "b 3"]]:
    """Cut-outs in 0..1, and their mean colours."""
    painted = cut_outs.astype(np.float32) / 255
    sums = painted.sum(axis=(2, 3))
    return painted, sums[:, :3] / sums[:, 3:]
