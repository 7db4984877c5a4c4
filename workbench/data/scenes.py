"""Scenes: cut-outs at a random place and size on crops of photographs, with the mask of every object.

A scene is a pure function of the set, the split and its number: all choices are addressed random numbers
(`diffusion.randomness`), so nothing is stored and scene 17 is the same in every batch. Scenes are composed at 64 x 64
pixels; smaller ones are averages of those, so that a scene shows the same at every size.

The photographs are the two that scikit-learn ships, both under CC BY 2.0 (its ``datasets/images/README.txt``):
china.jpg by danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035, and flower.jpg, which that file
attributes to danielbuechele too and retrieved from https://www.flickr.com/photos/vultilion/6056698931.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from PIL import Image

from workbench.config import DataConfig
from workbench.data.images import Images
from workbench.diffusion.randomness import uniform

SIZES = (32, 64)
# Each photograph and the column at which it is divided: test scenes show what is left of it, training scenes the rest.
# It is the middle of the pagoda and of the flower, so that both parts show much the same, mirrored.
PHOTOGRAPHS = {"china.jpg": 208, "flower.jpg": 306}
_SIDE = 64  # pixels at which scenes are composed
_VERSION = "scenes-1"  # to be changed with anything below that changes pixels
_ZOOMS = tuple(3.2 ** (step / 7) for step in range(8))  # a background is a crop of 64 to 205 pixels of a photograph
_OBJECT = (35 / 64, 53 / 64)  # side of a cut-out's square, as a share of the scene's
_CHANNELS = tuple(permutations(range(3)))
_AT_ONCE = 256  # scenes composed together, 20 MB of float32 numbers
# Columns of the random numbers of a scene.
_PHOTOGRAPH, _ZOOM, _MIRROR, _RECOLOUR, _SIZE, _DOWN, _RIGHT, _TURN = range(8)
_PLACES = slice(8, 14)
_OWN = 14  # columns from here on are for whatever makes the cut-outs


@dataclass(frozen=True)
class CutOuts:
    """Objects to be placed: ``paint(rows, draws)`` returns their colours and opacity, and a colour for the details.

    The first are RGBA in 0..1, ``b 4 k k``, with colours multiplied by opacity; the second RGB, ``b 3``. ``draws`` are
    ``columns`` uniform random numbers for each row. ``content`` identifies everything that determines the result.
    """

    name: str
    labels: Int[np.ndarray, "n"]
    classes: tuple[str, ...]
    origin: str
    content: str
    columns: int
    paint: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] = field(repr=False)


def scenes(config: DataConfig, split: str, cut_outs: CutOuts) -> Images:
    """One scene for each cut-out, RGB of ``config.size`` pixels, with masks and details.

    ``details(rows)`` has ``box`` (top, left, bottom, right in pixels; the last two are exclusive), ``colour`` (RGB of
    the object, 0..255) and ``background`` (number of the photograph). Raises ValueError for another size than 32 or 64
    and for a missing photograph.
    """
    if config.size not in SIZES:
        sizes = " or ".join(map(str, SIZES))
        raise ValueError(f"data.size is {config.size}; data.name={config.name} has scenes of {sizes} pixels")
    if config.masks is not None:
        raise ValueError(f"data.name={config.name} knows the masks of its objects; leave out data.masks")
    size, folder = config.size, photograph_folder()
    backgrounds = [
        _levels(photograph(folder / name)[:, slice(middle) if split == "test" else slice(middle, None)])
        for name, middle in PHOTOGRAPHS.items()
    ]
    digest = hashlib.sha256(f"{_VERSION} {split} {size} {cut_outs.content}".encode())
    for levels in backgrounds:
        for level in levels:
            digest.update(level.tobytes())

    def composed(rows: np.ndarray) -> "list[_Scenes]":
        parts = (rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE))
        return [_compose(cut_outs, backgrounds, split, part, size) for part in parts]

    def details(rows: np.ndarray) -> dict[str, np.ndarray]:
        parts = composed(rows)
        columns = {
            "box": [_boxes(part.masks) for part in parts],
            "colour": [part.colours for part in parts],
            "background": [part.backgrounds for part in parts],
        }
        return {name: np.concatenate(values) for name, values in columns.items()}

    return Images(
        name=cut_outs.name,
        split=split,
        labels=cut_outs.labels,
        classes=cut_outs.classes,
        channels=3,
        size=size,
        origin=f"{cut_outs.origin} on photographs of scikit-learn",
        content=digest.hexdigest(),
        read=lambda rows: np.concatenate([part.pixels for part in composed(rows)]),
        read_masks=lambda rows: np.concatenate([part.masks for part in composed(rows)]),
        read_details=details,
    )


def photograph_folder() -> Path:
    """Folder of scikit-learn's sample images."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ValueError("scenes need the photographs of scikit-learn: pip install scikit-learn")
    return Path(package.origin).parent / "datasets" / "images"


def photograph(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read a photograph; ValueError naming the file if it is missing or damaged."""
    try:
        with Image.open(file, formats=("JPEG",)) as opened:
            pixels = np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise ValueError(f"{file}, a background of the scenes, {problem}; install scikit-learn again") from error
    if pixels.shape != (427, 640, 3):
        raise ValueError(f"{file} has {pixels.shape[1]}x{pixels.shape[0]} pixels; scikit-learn's has 640x427")
    return pixels


@dataclass(frozen=True)
class _Scenes:
    pixels: UInt8[np.ndarray, "b 3 s s"]
    masks: Bool[np.ndarray, "b s s"]
    colours: UInt8[np.ndarray, "b 3"]
    backgrounds: Int[np.ndarray, "b"]


def _compose(
    cut_outs: CutOuts, backgrounds: Sequence[Sequence[np.ndarray]], split: str, rows: np.ndarray, size: int
) -> _Scenes:
    draws = uniform(0, f"{cut_outs.name} {split}", rows, _OWN + cut_outs.columns).numpy()
    behind = _backgrounds(backgrounds, draws)
    painted, colours = cut_outs.paint(rows, draws[:, _OWN:])
    turned = draws[:, _TURN] < 0.5
    painted[turned] = painted[turned, :, :, ::-1]
    objects = _placed(painted, draws)
    opacity = objects[:, 3:].clip(0, 1)
    pixels = _averaged((objects[:, :3] + (1 - opacity) * behind).clip(0, 1), size)
    return _Scenes(
        (255 * pixels + 0.5).astype(np.uint8),
        _averaged(opacity, size)[:, 0] > 0.5,
        (255 * colours + 0.5).astype(np.uint8),
        _choice(draws[:, _PHOTOGRAPH], len(PHOTOGRAPHS)),
    )


def _backgrounds(photographs: Sequence[Sequence[np.ndarray]], draws: np.ndarray) -> Float32[np.ndarray, "b 3 s s"]:
    """Crops of the photographs at a random zoom and place, mirrored and with permuted channels, in 0..1.

    Of three places the one with most contrast, since parts of a photograph show nothing but sky or dark.
    """
    crops = np.empty((len(draws), 3, _SIDE, _SIDE), np.uint8)
    which, zoom = _choice(draws[:, _PHOTOGRAPH], len(photographs)), _choice(draws[:, _ZOOM], len(_ZOOMS))
    colours = _choice(draws[:, _RECOLOUR], len(_CHANNELS))
    for crop, number, level, order, draw in zip(crops, which, zoom, colours, draws, strict=True):
        photo = photographs[number][level]
        room = np.array(photo.shape[1:]) - _SIDE + 1
        places = (draw[_PLACES].reshape(-1, 2) * room).astype(int)
        parts = [photo[:, top : top + _SIDE, left : left + _SIDE] for top, left in places]
        part = max(parts, key=lambda part: part[1, ::4, ::4].std())
        crop[:] = part[list(_CHANNELS[order]), :, :: -1 if draw[_MIRROR] < 0.5 else 1]
    return crops.astype(np.float32) / 255


def _placed(cut_outs: Float32[np.ndarray, "b 4 k k"], draws: np.ndarray) -> Float32[np.ndarray, "b 4 s s"]:
    """Cut-outs scaled, and moved so that the opaque part lies anywhere inside the scene."""
    side = cut_outs.shape[-1]
    low, high = _OBJECT
    scale = _SIDE * (low + (high - low) * draws[:, _SIZE]) / side
    boxes = _boxes(cut_outs[:, 3] > 0.5)
    weights = []
    for axis, column in enumerate((_DOWN, _RIGHT)):
        first, last = boxes[:, axis], boxes[:, axis + 2]
        room = _SIDE - 2 - (last - first) * scale
        weights.append(_resampling(1 + draws[:, column] * room - first * scale, scale, _SIDE, side))
    rows, columns = weights
    return np.matmul(np.matmul(rows[:, None], cut_outs), columns.transpose(0, 2, 1)[:, None])


def _resampling(
    start: Float[np.ndarray, "b"], scale: Float[np.ndarray, "b"], count: int, source: int
) -> Float32[np.ndarray, "b {count} {source}"]:
    """Weights of ``source`` pixels in ``count`` pixels if the former are enlarged by ``scale`` and begin at ``start``.

    Mitchell and Netravali's cubic filter (B = C = 1/3), widened where ``scale`` is below 1; zero outside the source.
    """
    centres = (np.arange(count) + 0.5 - start[:, None]) / scale[:, None]
    width = np.maximum(1, 1 / scale)[:, None, None]
    distance = np.abs(centres[:, :, None] - (np.arange(source) + 0.5)) / width
    near = (7 * distance**3 - 12 * distance**2 + 16 / 3) / 6
    far = (-7 / 3 * distance**3 + 12 * distance**2 - 20 * distance + 32 / 3) / 6
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0)) / width
    return weights.astype(np.float32)


def _averaged(maps: Float32[np.ndarray, "b c _ _"], size: int) -> Float32[np.ndarray, "b c {size} {size}"]:
    by = _SIDE // size
    return maps.reshape(*maps.shape[:2], size, by, size, by).mean(axis=(3, 5))


def _boxes(masks: Bool[np.ndarray, "b x y"]) -> Int[np.ndarray, "b 4"]:
    """Top, left, bottom and right of each mask, the last two exclusive; zeros for an empty mask."""
    (top, bottom), (left, right) = _span(masks.max(axis=2)), _span(masks.max(axis=1))
    return np.stack([top, left, bottom, right], axis=1)


def _span(some: Bool[np.ndarray, "b n"]) -> tuple[Int[np.ndarray, "b"], Int[np.ndarray, "b"]]:
    """First column that is True, and the one after the last."""
    last = some.shape[1] - some[:, ::-1].argmax(axis=1)
    return some.argmax(axis=1), np.where(some.any(axis=1), last, 0)


def _choice(draws: np.ndarray, count: int) -> Int[np.ndarray, "b"]:
    return (draws * count).astype(np.int64)


def _levels(photo: UInt8[np.ndarray, "h w 3"]) -> tuple[UInt8[np.ndarray, "3 _ _"], ...]:
    """A photograph reduced by each zoom."""
    return _reduced(photo.tobytes(), photo.shape)


@lru_cache(maxsize=4)
def _reduced(raw: bytes, shape: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
    channels = np.frombuffer(raw, np.uint8).reshape(shape).transpose(2, 0, 1).astype(np.float32)
    levels = []
    for zoom in _ZOOMS:
        # Whole pixels only, spread over the photograph's full height and width.
        sides = [int(length / zoom) for length in shape[:2]]
        rows, columns = (
            _resampling(np.zeros(1), np.array([side / length]), side, length)[0]
            for side, length in zip(sides, shape, strict=False)
        )
        rows, columns = (weights / weights.sum(axis=1, keepdims=True) for weights in (rows, columns))
        levels.append((rows @ channels @ columns.T + 0.5).clip(0, 255).astype(np.uint8))
    return tuple(levels)
