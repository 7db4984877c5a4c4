"""Image folders with one subfolder per class, read on access and cropped as in ADM."""

import io
import logging
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, PngImagePlugin

from workbench.config import DataConfig
from workbench.data.checksums import checksums
from workbench.data.images import Images
from workbench.data.tree import LeftOut, Tree, arrange, images_of_tree, joined, left_out_reason, printable
from workbench.files import home_path

log = logging.getLogger(__name__)

# Pillow detects the format from the content; some formats are programs, such as PostScript, which runs Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 178_956_970  # half a gigabyte of RGB, Pillow's own limit
# Some programs store large texts in PNG chunks, which are ignored here; Pillow refuses those above a megabyte.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
_READERS = 8  # threads at most
_noted: set[str] = set()  # warnings about images, given once per process
_noting = threading.Lock()


def load_image_folder(config: DataConfig, split: str) -> Images:
    """Load ``config.path/[train|test|val]/class/*.png`` as RGB images of ``config.size`` pixels; a .zip is possible.

    Classes and splits follow `data.tree.arrange`, masks are read from ``config.masks`` (`with_masks`). Files are opened
    on access. An empty file, a file that is not an
    image and, with ``crop: none``, an image of another size raise a ValueError that names the file. The content hash
    covers names, bytes and labels, so that a folder and a zip archive of it are the same set.
    """
    root = data_path(config, "a folder or a .zip file with one folder for each class")
    if root.suffix.lower() == ".zip" and not root.is_dir():
        from workbench.data.archives import load_image_zip

        return load_image_zip(config, root, split)
    if not root.is_dir():
        raise ValueError(f"data.path {root} is not a folder")
    tree = arrange(Folder(root), split, unwrap=False)
    folder = root / tree.prefix
    files = [folder / name for name in tree.names]
    read = partial(read_files, files, config.size, config.crop)
    images = images_of_tree(config, split, tree, checksums(folder, tree.names, kind=split), root, read)
    return with_masks(images, config, root, tree, files.__getitem__)


def data_path(config: DataConfig, what: str) -> Path:
    """``data.path`` with ``~`` expanded; ValueError, with ``what`` it has to be, if it is not set."""
    if config.path is None or not config.path.strip():
        raise ValueError(f"data.name={config.name} needs data.path, {what}")
    return home_path(config.path)


class Folder:
    """Files below a folder on disk, as a `data.tree.Listing`; links are followed."""

    def __init__(self, root: Path):
        self.root, self.where, self.left_out = root, f"{root}/", LeftOut()
        self._seen: dict[str, tuple[list[str], list[str]]] = {}

    def folders(self, inside: str) -> list[str]:
        return self._look(inside)[0]

    def files(self, inside: str) -> list[str]:
        return self._look(inside)[1]

    def walk(self, inside: str) -> Iterator[tuple[str, int]]:
        return self._walk(inside, ())

    def _walk(self, inside: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int]]:
        status = self._stat(inside)
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise ValueError(f"{self.where}{inside} is a link to one of its parent folders")
        folders, files = self._scan(inside)
        for name in files:
            path = joined(inside, name)
            yield path, self._regular(path)
        for name in folders:
            yield from self._walk(joined(inside, name), (*above, here))

    def _look(self, inside: str) -> tuple[list[str], list[str]]:
        if inside not in self._seen:
            self._seen[inside] = self._scan(inside)
        return self._seen[inside]

    def _scan(self, inside: str) -> tuple[list[str], list[str]]:
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(self.root / inside) as entries:
                for entry in entries:
                    is_folder = entry.is_dir()
                    reason = left_out_reason(entry.name, is_folder)
                    if reason:
                        self.left_out.add(reason, joined(inside, entry.name))
                    else:
                        (folders if is_folder else files).append(entry.name)
        except OSError as error:
            raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error
        return sorted(folders), sorted(files)

    def _regular(self, path: str) -> int:
        status = self._stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{self.where}{printable(path)} is neither a file nor a folder")
        return status.st_size

    def _stat(self, path: str) -> os.stat_result:
        try:
            return os.stat(self.root / path)
        except OSError as error:  # a broken link
            raise ValueError(f"{self.where}{printable(path)} cannot be read: {error.strerror}") from error


def read_files(files: list[Path], size: int, crop: str, indices: np.ndarray) -> np.ndarray:
    """Read some of the files, several at a time: Pillow decodes and resizes without Python's lock."""

    def read(index: int) -> np.ndarray:
        return read_image(files[index], printable(str(files[index])), size, crop)

    threads = min(os.cpu_count() or 1, _READERS, len(indices) // 4)
    if threads < 2:
        return np.stack([read(index) for index in indices.tolist()])
    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(read, indices.tolist())))


def with_masks(
    images: Images, config: DataConfig, root: Path, tree: Tree, source: Callable[[int], Path | io.BytesIO]
) -> Images:
    """``images`` with masks read from ``config.masks``, if it is set: the image's path below the root, ending in .png.

    ``source(index)`` is the file of an image. Raises ValueError for a mask that is missing; those that are read later
    raise it for one that is damaged or of another size than its image.
    """
    if config.masks is None:
        return images
    folder = home_path(config.masks)
    if not folder.is_dir():
        raise ValueError(f"data.masks {folder} is not a folder")
    if folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"data.masks {folder} is inside data.path {root}, where a folder is a class; put it beside")
    files = [folder / f"{os.path.splitext(tree.prefix + name)[0]}.png" for name in tree.names]
    lacking = [number for number, file in enumerate(files) if not file.is_file()]
    if lacking:
        name, file = tree.prefix + tree.names[lacking[0]], files[lacking[0]]
        raise ValueError(
            f"data.masks {folder} lacks the masks of {len(lacking):,} of {len(files):,} images; that of "
            f"{printable(name)} would be {printable(str(file))}"
        )

    def read(indices: np.ndarray) -> np.ndarray:
        return np.stack([_read_mask(files[i], source(i), config.size, config.crop) for i in indices.tolist()])

    return replace(images, read_masks=read)


def _read_mask(file: Path, image: Path | io.BytesIO, size: int, crop: str) -> Bool[np.ndarray, "{size} {size}"]:
    """A mask, cropped and resized as its image is; white (grey levels from 128 on) is True."""
    name = printable(str(file))
    try:
        with Image.open(image, formats=FORMATS) as opened:
            wanted = opened.size
        with Image.open(file, formats=("PNG",)) as opened:
            found = opened.size
            if found[0] * found[1] > MAX_PIXELS:
                raise ValueError(f"it has {found[0]}x{found[1]} pixels, at most {MAX_PIXELS:,} are read")
            if found == wanted:
                mask = _rgb(opened).convert("L")
    except DAMAGE as error:
        raise ValueError(f"{name} is damaged or not a mask (PNG): {error}") from error
    if found != wanted:
        raise ValueError(f"{name} is {found[0]}x{found[1]}; its image is {wanted[0]}x{wanted[1]}")
    brightest = int(np.asarray(mask).max())
    if 0 < brightest < 128:
        raise ValueError(f"{name} has grey levels up to {brightest} only; the object must be white, 128 to 255")
    return np.asarray(_cropped(mask, name, size, crop)) >= 128


def read_image(
    source: Path | io.BytesIO, name: str, size: int, crop: str = "adm"
) -> UInt8[np.ndarray, "3 {size} {size}"]:
    """Read an image file as uint8 ``3 size size``; ValueError naming it as ``name`` if it cannot be read.

    As in ADM and torchvision, transparency is dropped, orientation tags and colour profiles are ignored, and only the
    first frame is used. Unlike there, 16-bit grey is scaled to 8 bits, which Pillow would clip. The first image of each
    such kind is logged.
    """
    try:
        with Image.open(source, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"it has {opened.width}x{opened.height} pixels, at most {MAX_PIXELS:,} are read")
            _note_kind(opened, name)
            image = _rgb(opened)
    # Pillow's plugins raise many kinds of errors for damaged files.
    except DAMAGE as error:
        raise ValueError(f"{name} is damaged or not an image ({', '.join(FORMATS)}): {error}") from error
    return np.asarray(_cropped(image, name, size, crop)).transpose(2, 0, 1)


def _cropped(image: Image.Image, name: str, size: int, crop: str) -> Image.Image:
    if crop == "none" and image.size != (size, size):
        raise ValueError(f"{name} is {image.width}x{image.height}; with data.crop=none all must be {size}x{size}")
    if max(image.size) * size**2 > MAX_PIXELS * min(image.size):
        raise ValueError(f"{name} is {image.width}x{image.height}: too long to be scaled to {size} pixels")
    return adm_center_crop(image, size)


DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65_535:
            raise ValueError("its grey levels are not 16-bit values")
        # 65,535 is white and equals 257 * 255.
        return Image.fromarray(((values.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info and image.mode != "RGBA":
        image = image.convert("RGBA")  # avoids Pillow's warning about palettes with transparency
    return image.convert("RGB")


def _note_kind(image: Image.Image, name: str) -> None:
    """Log, for the first image of each special kind, how it is converted."""
    kinds = {
        "is partly transparent, which is dropped as torchvision does": image.mode in ("LA", "PA", "RGBA", "La", "RGBa")
        or "transparency" in image.info,
        "has 16 bits a pixel, scaled to 8": image.mode.startswith("I"),
        "is CMYK, made RGB without a colour profile": image.mode == "CMYK",
        "has several frames, only the first is used": getattr(image, "n_frames", 1) > 1,
        "has an orientation tag, which ADM does not apply": image.getexif().get(0x0112, 1) != 1,
    }
    for kind, holds in kinds.items():
        if not holds or kind in _noted:
            continue
        with _noting:
            first = kind not in _noted
            _noted.add(kind)
        if first:
            log.warning("%s %s (logged for the first such image only)", name, kind)


def adm_center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop: halve with a box filter while at least twice too large, resize bicubically, crop the centre.

    An image whose shorter side is below ``size`` is enlarged, as in ADM; ImageNet has many.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
