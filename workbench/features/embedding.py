"""Embeddings of rows in the plane by PCA, t-SNE and UMAP, alone or as a sequence in which points move little.

Gaps between clusters, their areas and densities mean nothing in t-SNE and UMAP: only who is near whom does, roughly.
So each embedding carries numbers that say how far it may be trusted, and separability is measured on the rows.
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

METHODS = {"pca": "torch", "tsne": "openTSNE", "umap": "umap-learn"}  # the library that has a say in the result
_EXACT_ROWS = 5000  # up to here neighbours are found by trying all
_TRUST_ROWS = 2000  # trustworthiness holds tables of rows x rows
_TRUST_NEIGHBOURS = 12


@dataclass(frozen=True, eq=False)
class Embedding:
    """Points of rows in the plane, centred, and how far to trust them.

    `trustworthiness` (Venna and Kaski 2001; 12 neighbours, of at most 2000 rows evenly taken) is 1 where those near in
    the plane are near in the rows, about 0.5 by chance. `purity` is that of `purity`, if labels were given.
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
    """Rows in the plane by `method`: "pca", "tsne" (openTSNE) or "umap" (umap-learn), by Euclidean distance.

    t-SNE and UMAP see the first `reduce` principal components and begin with the first two. `start`, points of the same
    rows, is where they begin instead, and the result is turned or mirrored onto it; t-SNE then goes on without its
    early exaggeration: points stay near, but from a start unlike the rows it ends worse. `perplexity` is t-SNE's,
    `neighbours` UMAP's, `jobs` the threads of t-SNE; UMAP has one. With one thread a seed gives the same points on one
    machine. UMAP compiles for 10 to 30 seconds at its first call in a process. ValueError for another method, values
    outside what it can do, rows that are not finite or do not vary, or a start of another shape.
    """
    values = _checked(rows, method, perplexity, neighbours, reduce, start)
    settings = {"method": method, "seed": seed, "warm": start is not None}
    settings |= {"tsne": {"perplexity": perplexity}, "umap": {"neighbours": neighbours}}.get(method, {})
    settings |= {"reduce": 2 if method == "pca" else reduce, "library": f"{METHODS[method]} {version(METHODS[method])}"}
    points = _scores(values, settings["reduce"])
    if method == "tsne":
        points = _tsne(points, seed, perplexity, start, jobs)
    elif method == "umap":
        points = _umap(points, seed, neighbours, start)
    points = torch.from_numpy(points - points.mean(axis=0))
    if start is not None:
        points = points @ procrustes(points, start)
    points = points.float()
    return _judged(Embedding(points, method, settings, _trustworthiness(values, points)), labels)


def embed_sequence(
    sets: Sequence[Float[Tensor, "n ..."]],
    method: str,
    *,
    seed: int,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> list[Embedding]:
    """Embed the same rows through layers, times, scales or steps, each embedding starting from the one before.

    So a point moves because its neighbours changed, not because an embedding may be rotated at will. With "pca" each is
    its own PCA, rotated onto the one before.

    Args:
        sets: Features ``n d`` or ``n m d`` of the same n images, one entry for each frame; widths may differ.
        method: "pca", "tsne" (openTSNE) or "umap" (umap-learn).
        seed: Seed of the method.
        folder: Where embeddings are kept and found again.
        progress: Called with (done, total) sets.
        options: Those of ``features.embedding.embed``: perplexity, neighbours, reduce, labels, jobs.

    Returns:
        An ``Embedding`` for each set, with ``points`` (``n 2``), ``trustworthiness``, and ``purity`` if there were
        labels.

    Raises:
        ValueError: If the numbers of rows differ, for another method, for values that it cannot take, and for rows that
            are not finite or do not vary.

    Examples:
        >>> features = wb.extract(wb.zoo("guided"), images=40, layers=[4, 8], times=[0.5], pooling="mean")
        >>> frames = wb.embed_sequence([features.read(4, 0.5), features.read(8, 0.5)], "pca", seed=0)
        >>> [frame.points.shape for frame in frames]
        [torch.Size([40, 2]), torch.Size([40, 2])]
    """
    counts = sorted({len(rows) for rows in sets})
    if len(counts) != 1:
        raise ValueError(f"the sets have {counts} rows; allowed are one or more sets of the same rows")
    found: list[Embedding] = []
    for done, rows in enumerate(sets, start=1):
        start = {"start": found[-1].points} if found else {}
        told = {**options, **start, "seed": seed}
        found.append(embed(rows, method, **told) if folder is None else embed_cached(folder, rows, method, **told))
        if progress:
            progress(done, len(sets))
    return found


def embed_cached(
    folder: Path,
    rows: Float[Tensor, "n d"],
    method: str,
    *,
    labels: Integer[Tensor, " n"] | None = None,
    **options: Any,
) -> Embedding:
    """`embed`, kept in `folder` by the content of the rows, the start, the options and the library's version.

    What is there is not computed again, a damaged file is; labels do not count, the purity is taken anew.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; allowed are {', '.join(METHODS)}")
    path = Path(folder) / f"{method}-{_key(rows, method, options)}.npz"
    embedding = _read(path, len(rows), method)
    if embedding is None:
        embedding = embed(rows, method, **options)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        told = json.dumps(dict(embedding.settings))
        np.savez(content, points=embedding.points.numpy(), trust=embedding.trustworthiness, settings=told)
        write_atomically(path, content.getvalue())
    return _judged(embedding, labels)


def purity(points: Float[Tensor, "n d"], labels: Integer[Tensor, " n"], k: int = 20) -> float:
    """Mean share of the k nearest other points that have a point's own label; 1 where classes lie apart.

    By chance it is the mean share of the classes (0.1 for ten of equal size). In the plane it judges the picture, not
    the rows: gaps and areas of clusters mean nothing. ValueError unless 1 <= k < n.
    """
    from sklearn.neighbors import NearestNeighbors

    if not 1 <= k < len(points):
        raise ValueError(f"got {k} neighbours; allowed are 1 to {len(points) - 1}, the other points")
    values = labels.detach().cpu().numpy()
    nearest = NearestNeighbors(n_neighbors=k).fit(points.detach().cpu().numpy()).kneighbors(return_distance=False)
    return float((values[nearest] == values[:, None]).mean())


def _judged(embedding: Embedding, labels: Integer[Tensor, " n"] | None) -> Embedding:
    if labels is None:
        return embedding
    return replace(embedding, purity=purity(embedding.points, labels, min(20, len(labels) - 1)))


def _scores(values: Float64[Tensor, "n d"], count: int) -> Float64[np.ndarray, "n k"]:
    """The first principal components, as many as there are up to `count` and at least two."""
    rows = values - values.mean(dim=0)
    basis, _ = principal(rows.T @ rows / len(rows), min(count, *rows.shape))
    scores = (rows @ basis).numpy()
    return np.pad(scores, ((0, 0), (0, max(0, 2 - scores.shape[1]))))


def _tsne(
    scores: Float64[np.ndarray, "n k"], seed: int, perplexity: float, start: Tensor | None, jobs: int
) -> Float64[np.ndarray, "n 2"]:
    from openTSNE import TSNE, initialization

    if start is None:
        first = initialization.rescale(scores[:, :2])
        # Points that coincide have no gradient to part them.
        phases = {"initialization": initialization.jitter(first, random_state=seed)}
    else:
        phases = {"initialization": start.double().numpy(), "early_exaggeration_iter": 0}
    neighbours = "exact" if len(scores) <= _EXACT_ROWS else "auto"
    model = TSNE(perplexity=perplexity, random_state=seed, n_jobs=jobs, neighbors=neighbours, **phases)
    with _quiet("openTSNE.tsne"):  # it would warn that a start is not tiny, which is the point of a warm one
        return np.array(model.fit(scores), np.float64)


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
        # It warns of packages it can do without, and of renamed arguments in others that it calls.
        warnings.filterwarnings("ignore", module=r"(umap|sklearn|pynndescent|numba)\b")
        warnings.filterwarnings("ignore", message=".*Tensorflow.*")
        _let_numba_cache()
        from umap import UMAP

        first = scores[:, :2] * (10 / np.abs(scores[:, :2]).max()) if start is None else start.double().numpy()
        model = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1, init=first.astype(np.float32))
        return np.array(model.fit_transform(scores.astype(np.float32)), np.float64)


def _let_numba_cache() -> None:
    """Give UMAP's compiler a folder: it refuses to compile where neither the packages nor the home can be written.

    ValueError if no folder can be, not even a temporary one, or not that of ``$NUMBA_CACHE_DIR``.
    """
    if said := os.environ.get("NUMBA_CACHE_DIR"):
        if not _can_write(Path(said)):
            raise ValueError(f"NUMBA_CACHE_DIR is {said}, which cannot be written: UMAP compiles into it; name another")
        return
    packages = [Path(find_spec(name).origin).parent / "__pycache__" for name in ("umap", "pynndescent")]
    if all(map(_can_write, packages)) or ((cache := _user_cache()) and _can_write(cache / "numba")):
        return
    try:
        folder = tempfile.mkdtemp(prefix="workbench-numba-")
    except OSError as error:
        raise ValueError(
            "UMAP finds no folder that can be written, which its compiler needs: set NUMBA_CACHE_DIR to one"
        ) from error
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = folder
    if numba := sys.modules.get("numba"):  # which has read the variable before
        numba.config.CACHE_DIR = folder


def _user_cache() -> Path | None:
    with contextlib.suppress(RuntimeError):  # a user without a home
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return None


def _can_write(folder: Path) -> bool:
    """Whether a file can be made there, as the compiler looks for it."""
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
    """The rows in float64; ValueError for whatever `embed` cannot do."""
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
    told = {name: value for name, value in options.items() if name != "start"}
    told |= {"library": version(METHODS[method]), "shape": list(rows.shape), "dtype": str(rows.dtype)}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for tensor in (rows, options.get("start")):
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _read(path: Path, count: int, method: str) -> Embedding | None:
    """The embedding in a file; None if there is none, or none that is whole."""
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
