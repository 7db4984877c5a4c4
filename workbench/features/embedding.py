"""2-D embeddings by PCA, t-SNE and UMAP, of one set of rows or of a sequence in which points move little.

In t-SNE and UMAP only neighbourhoods are meaningful, and only roughly: gaps between clusters, their areas and their
densities are not. Each embedding therefore has measures of its quality, and separability is measured on the rows.
"""

import atexit
import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Integer
from torch import Tensor

from workbench.arrays import open_npz
from workbench.features.directions import principal, procrustes
from workbench.files import parse_mapping, write_atomically

METHODS = {"pca": "torch", "tsne": "openTSNE", "umap": "umap-learn"}  # by library
_EXACT_ROWS = 5000  # up to here neighbours are found by brute force
_TRUST_ROWS = 2000  # trustworthiness needs arrays of rows x rows
_TRUST_NEIGHBOURS = 12


@dataclass(frozen=True, eq=False)
class Embedding:
    """Centred points of rows in the plane, and measures of their quality.

    `trustworthiness` (Venna and Kaski 2001; 12 neighbours, of at most 2000 evenly spaced rows) is 1 if neighbours in
    the plane are neighbours among the rows, and about 0.5 by chance. `purity` is computed if labels were given.
    """

    points: Float32[Tensor, "n 2"]
    method: str
    settings: Mapping[str, Any]
    trustworthiness: float
    purity: float | None = None


def embed(
    rows: Float[Tensor, "n d"],
    method: str,
    *,
    seed: int,
    perplexity: float = 30.0,
    neighbours: int = 15,
    start: Float[Tensor, "n 2"] | None = None,
    reduce: int = 50,
    labels: Integer[Tensor, " n"] | None = None,
    jobs: int = 1,
) -> Embedding:
    """Embed rows in the plane by "pca", "tsne" (openTSNE) or "umap" (umap-learn), with Euclidean distances.

    t-SNE and UMAP get the first `reduce` principal components and are initialized with the first two, or with `start`,
    points of the same rows; the result is then Procrustes-aligned to `start`, and t-SNE skips its early exaggeration,
    so points stay near their start (from a start unrelated to the rows the result is worse). `perplexity` is for t-SNE,
    `neighbours` for UMAP. `jobs` is the number of threads of t-SNE; UMAP uses one. With one thread, a seed gives the
    same points on one machine. UMAP compiles for 10 to 30 seconds at its first call in a process. Raises ValueError for
    another method, values out of range, rows that are not finite or do not vary, or a start of another shape.
    """
    values = _checked(rows, method, perplexity, neighbours, reduce, start)
    components = 2 if method == "pca" else reduce
    settings: dict[str, Any] = {"method": method, "seed": seed, "warm": start is not None}
    if method == "tsne":
        settings["perplexity"] = perplexity
    elif method == "umap":
        settings["neighbours"] = neighbours
    settings |= {"reduce": components, "library": f"{METHODS[method]} {version(METHODS[method])}"}
    plane = _scores(values, components)
    if method == "tsne":
        plane = _tsne(plane, seed, perplexity, start, jobs)
    elif method == "umap":
        plane = _umap(plane, seed, neighbours, start)
    points = torch.from_numpy(plane - plane.mean(axis=0))
    if start is not None:
        points = points @ procrustes(points, start)
    points = points.float()
    return _with_purity(Embedding(points, method, settings, _trustworthiness(values, points)), labels)


def embed_sequence(
    sets: Sequence[Float[Tensor, "n ..."]],
    method: str,
    *,
    seed: int,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> list[Embedding]:
    """Embed the same rows across layers, times, scales or steps; each embedding starts from the one before.

    So a point moves because its neighbours changed, not because embeddings can be rotated arbitrarily. With "pca" each
    set has its own PCA, Procrustes-aligned to the one before.

    Args:
        sets: Features ``n d`` or ``n m d`` of the same n images, one entry for each frame; widths may differ.
        method: "pca", "tsne" (openTSNE) or "umap" (umap-learn).
        seed: Seed of the method.
        folder: Cache folder for the embeddings.
        progress: Called with (done, total) sets.
        options: Options of ``features.embedding.embed``: perplexity, neighbours, reduce, labels, jobs.

    Returns:
        An ``Embedding`` for each set, with ``points`` (``n 2``), ``trustworthiness``, and ``purity`` if there were
        labels.

    Raises:
        ValueError: If the numbers of rows differ, for another method, for values out of range, and for rows that are
            not finite or do not vary.

    Examples:
        >>> features = wb.extract(wb.zoo("guided"), images=40, layers=[4, 8], times=[0.5], pooling="mean")
        >>> frames = wb.embed_sequence([features.read(4, 0.5), features.read(8, 0.5)], "pca", seed=0)
        >>> [frame.points.shape for frame in frames]
        [torch.Size([40, 2]), torch.Size([40, 2])]
    """
    counts = sorted({len(rows) for rows in sets})
    if len(counts) != 1:
        raise ValueError(f"the sets have {counts} rows; allowed are one or more sets of the same rows")
    embeddings: list[Embedding] = []
    for done, rows in enumerate(sets, start=1):
        start = {"start": embeddings[-1].points} if embeddings else {}
        arguments = {**options, **start, "seed": seed}
        if folder is None:
            embeddings.append(embed(rows, method, **arguments))
        else:
            embeddings.append(embed_cached(folder, rows, method, **arguments))
        if progress:
            progress(done, len(sets))
    return embeddings


def embed_cached(
    folder: Path,
    rows: Float[Tensor, "n d"],
    method: str,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    **options: Any,
) -> Embedding:
    """`embed` with a cache in `folder`, keyed by rows, start, options and the library's version.

    A damaged file is computed again. Labels are not part of the key, as the purity is always computed.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; allowed are {', '.join(METHODS)}")
    path = Path(folder) / f"{method}-{_key(rows, method, options)}.npz"
    embedding = _read(path, len(rows), method)
    if embedding is None:
        embedding = embed(rows, method, **options)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        settings = json.dumps(dict(embedding.settings))
        np.savez(content, points=embedding.points.numpy(), trust=embedding.trustworthiness, settings=settings)
        write_atomically(path, content.getvalue())
    return _with_purity(embedding, labels)


def purity(points: Float[Tensor, "n d"], labels: Integer[Tensor, " n"], k: int = 20) -> float:
    """Mean fraction of the k nearest other points with the same label; 1 if the classes are separate.

    By chance it is the mean frequency of the classes (0.1 for ten of equal size). For points of an embedding it
    measures the embedding, not the rows. Raises ValueError unless 1 <= k < n.
    """
    from sklearn.neighbors import NearestNeighbors

    if not 1 <= k < len(points):
        raise ValueError(f"got {k} neighbours; allowed are 1 to {len(points) - 1}, the other points")
    values = labels.detach().cpu().numpy()
    nearest = NearestNeighbors(n_neighbors=k).fit(points.detach().cpu().numpy()).kneighbors(return_distance=False)
    return float((values[nearest] == values[:, None]).mean())


def _with_purity(embedding: Embedding, labels: Integer[Tensor, " n"] | None) -> Embedding:
    if labels is None:
        return embedding
    return replace(embedding, purity=purity(embedding.points, labels, min(20, len(labels) - 1)))


def _scores(values: Float64[Tensor, "n d"], count: int) -> Float64[np.ndarray, "n k"]:
    """The first `count` principal components, or all if there are fewer, padded with zeros to two."""
    rows = values - values.mean(dim=0)
    basis, _ = principal(rows.T @ rows / len(rows), min(count, *rows.shape))
    scores = (rows @ basis).numpy()
    return np.pad(scores, ((0, 0), (0, max(0, 2 - scores.shape[1]))))


def _tsne(
    scores: Float64[np.ndarray, "n k"], seed: int, perplexity: float, start: Tensor | None, jobs: int
) -> Float64[np.ndarray, "n 2"]:
    from openTSNE import TSNE, initialization
    from openTSNE.affinity import MultiscaleMixture
    from openTSNE.nearest_neighbors import Sklearn

    if start is None:
        first = initialization.rescale(scores[:, :2])
        # Identical points have no gradient that separates them.
        phases: dict[str, Any] = {"initialization": initialization.jitter(first, random_state=seed)}
    else:
        phases = {"initialization": start.double().numpy(), "early_exaggeration_iter": 0}
    affinities = None
    if len(scores) <= _EXACT_ROWS:
        # As TSNE(neighbors="exact") has it, but that imports pynndescent, and so numba, without using it.
        nearest = Sklearn(scores, k=min(len(scores) - 1, int(3 * perplexity)), n_jobs=jobs, random_state=seed)
        affinities = MultiscaleMixture(perplexities=perplexity, knn_index=nearest, n_jobs=jobs)
    model = TSNE(perplexity=perplexity, random_state=seed, n_jobs=jobs, **phases)
    with _quiet("openTSNE.tsne"):  # it warns that the start is not tiny, which is intended here
        return np.array(model.fit(scores, affinities), np.float64)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _umap(
    scores: Float64[np.ndarray, "n k"], seed: int, neighbours: int, start: Tensor | None
) -> Float64[np.ndarray, "n 2"]:
    with warnings.catch_warnings():
        # It warns of optional packages that are missing, and of renamed arguments in packages that it calls.
        warnings.filterwarnings("ignore", module=r"(umap|sklearn|pynndescent|numba)\b")
        warnings.filterwarnings("ignore", message=".*Tensorflow.*")
        _let_numba_cache()
        from sklearn.neighbors import NearestNeighbors
        from umap import UMAP

        rows = scores.astype(np.float32)
        # UMAP's own search is compiled in every process, for five seconds.
        distances, nearest = NearestNeighbors(n_neighbors=neighbours).fit(rows).kneighbors(rows)
        known = (nearest, distances.astype(np.float32), None)
        first = scores[:, :2] * (10 / np.abs(scores[:, :2]).max()) if start is None else start.double().numpy()
        first = first.astype(np.float32)
        model = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1, init=first, precomputed_knn=known)
        return np.array(model.fit_transform(rows), np.float64)


def _let_numba_cache() -> None:
    """Set a cache folder for UMAP's compiler if neither the packages nor the home folder can be written.

    Raises ValueError if there is no writable folder, not even a temporary one, or ``$NUMBA_CACHE_DIR`` is read-only.
    """
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        if not _can_write(Path(named)):
            raise ValueError(
                f"NUMBA_CACHE_DIR is {named}, which cannot be written; set it to a folder for UMAP's compiler"
            )
        return
    specs = [find_spec(name) for name in ("umap", "pynndescent")]
    packages = [Path(spec.origin).parent / "__pycache__" for spec in specs if spec is not None and spec.origin]
    if all(map(_can_write, packages)) or ((cache := _user_cache()) and _can_write(cache / "numba")):
        return
    try:
        folder = tempfile.mkdtemp(prefix="workbench-numba-")
    except OSError as error:
        raise ValueError(
            "UMAP needs a writable folder for its compiler and found none: set NUMBA_CACHE_DIR to one"
        ) from error
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = folder
    if numba := sys.modules.get("numba"):  # it has already read the variable
        numba.config.CACHE_DIR = folder


def _user_cache() -> Path | None:
    with contextlib.suppress(RuntimeError):  # a user without a home
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return None


def _can_write(folder: Path) -> bool:
    """Whether a file can be created in the folder, which is what the compiler checks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _trustworthiness(values: Float64[Tensor, "n d"], points: Float32[Tensor, "n 2"]) -> float:
    from sklearn.manifold import trustworthiness

    step = -(-len(values) // _TRUST_ROWS)
    near = min(_TRUST_NEIGHBOURS, (len(points[::step]) - 1) // 2)
    return float(trustworthiness(values[::step].numpy(), points[::step].numpy(), n_neighbors=near))


def _checked(
    rows: Tensor, method: str, perplexity: float, neighbours: int, reduce: int, start: Tensor | None
) -> Float64[Tensor, "n d"]:
    """The rows in float64; ValueError for arguments that `embed` does not allow."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; allowed are {', '.join(METHODS)}")
    n, values = len(rows), rows.detach().cpu().double()
    if n < 4 or not values.isfinite().all():
        raise ValueError(f"got {n} rows, or some that are not finite; allowed are 4 or more finite rows")
    if method == "tsne" and not 1 <= perplexity < n / 3:
        raise ValueError(f"perplexity is {perplexity:g}; allowed are 1 to below {n / 3:.3g}, a third of the rows")
    if method == "umap" and not 2 <= neighbours < n:
        raise ValueError(f"neighbours is {neighbours}; allowed are 2 to {n - 1}, the other rows")
    if reduce < 2:
        raise ValueError(f"reduce is {reduce}; allowed are 2 or more components")
    if start is not None and (start.shape != (n, 2) or not start.isfinite().all()):
        raise ValueError(f"start has the shape {tuple(start.shape)}, or is not finite; allowed is {(n, 2)}")
    return values


def _key(rows: Tensor, method: str, options: Mapping[str, Any]) -> str:
    described = {name: value for name, value in options.items() if name != "start"}
    described |= {"library": version(METHODS[method]), "shape": list(rows.shape), "dtype": str(rows.dtype)}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for tensor in (rows, options.get("start")):
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _read(path: Path, count: int, method: str) -> Embedding | None:
    """Read the embedding in a file; None if the file is missing or damaged."""
    if not path.is_file():
        return None
    try:
        with open_npz(path) as arrays:
            points, trust = torch.from_numpy(arrays.read("points")), arrays.read("trust")
            settings = parse_mapping(str(arrays.read("settings", kinds="U")), "settings")
        if points.shape != (count, 2) or not (points.isfinite().all() and np.isfinite(trust).all()):
            raise ValueError(f"its points are not {count} finite ones")
        return Embedding(points, method, settings, float(trust))
    except (ValueError, TypeError) as error:
        warnings.warn(f"{path} is damaged and computed again: {error}", stacklevel=3)
        return None
