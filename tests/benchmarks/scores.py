"""What scores cost beside other programs' on the same numbers, in one process and in turn."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import harness
import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float
from rich.table import Table
from rich.text import Text
from threadpoolctl import threadpool_limits
from torch import Tensor

from workbench.cli.terminal import Console
from workbench.config import DataConfig
from workbench.config.ranges import Count, Width
from workbench.data.images import load_images
from workbench.diffusion.randomness import generator
from workbench.evaluation.detectors.base import load_detector
from workbench.evaluation.frechet import frechet_distance, frechet_from_features, statistics
from workbench.evaluation.manifold import precision_recall
from workbench.evaluation.reference import batches_of, reference_of_data, see
from workbench.evaluation.scores.base import measure
from workbench.evaluation.scores.kid import kid


@dataclass(frozen=True)
class Timing:
    """One program's time for one score, and the number it found."""

    score: str
    program: str
    seconds: float
    value: float


def bench_scores(*, dimensions: int = 2048, count: int = 5000, seed: int = 0) -> Iterator[Timing]:
    """Times of Frechet distance, KID and precision of two sets of `count` correlated rows, on one thread each.

    Beside ours SciPy's sqrtm of the product and, where it is installed, torch-fidelity. Then the time of all scores of
    the embedded test images by clf64 against the training images, of which only what is seen of the latter is done
    before. Yields as they are measured.
    """
    numbers = generator(seed, "bench-scores", 0)
    mixing = numbers.standard_normal((dimensions, dimensions), np.float32) / dimensions**0.5
    x, y = (
        torch.from_numpy(numbers.standard_normal((count, dimensions), np.float32) @ mixing + shift)
        for shift in (0.0, 0.05)
    )
    with threadpool_limits(1):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for score, program, run in _programs(x, y, seed):
                started = time.perf_counter()
                value = run()
                yield Timing(score, program, time.perf_counter() - started, value)
        finally:
            torch.set_num_threads(threads)
    yield _whole_suite(seed)


def _programs(
    x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], seed: int
) -> Iterator[tuple[str, str, Callable[[], float]]]:
    first, second = statistics(x), statistics(y)
    # Moments are given to all alike: what differs between programs is the trace of the root.
    yield "Frechet distance", "workbench", lambda: frechet_distance(first, second, small_ok=True).value

    def by_root() -> float:
        root = scipy.linalg.sqrtm(first.covariance @ second.covariance)
        shift = first.mean - second.mean
        return float(shift @ shift + np.trace(first.covariance + second.covariance - 2 * np.real(root)))

    yield "Frechet distance", "SciPy sqrtm", by_root
    yield "KID", "workbench", lambda: kid(x, y, seed=seed).value
    yield "precision", "workbench", lambda: precision_recall(x, y).precision
    few = x[: x.shape[1] // 4], y[: x.shape[1] // 4]
    yield "Frechet distance, few rows", "workbench", lambda: frechet_from_features(*few, small_ok=True).value
    if find_spec("torch_fidelity"):
        yield from _torch_fidelity(x, y, first, second, seed)


def _torch_fidelity(x, y, first, second, seed: int) -> Iterator[tuple[str, str, Callable[[], float]]]:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, prc_features_to_metric

    stored = [{"mu": one.mean, "sigma": one.covariance} for one in (first, second)]
    quiet = {"verbose": False, "rng_seed": seed, "save_cpu_ram": True}
    yield "Frechet distance", "torch-fidelity", lambda: fid_statistics_to_metric(*stored, False)[KEY_METRIC_FID]
    yield "KID", "torch-fidelity", lambda: kid_features_to_metric(x, y, **quiet)[KEY_METRIC_KID_MEAN]
    yield "precision", "torch-fidelity", lambda: prc_features_to_metric(x, y, **quiet)[KEY_METRIC_PRECISION]


def _whole_suite(seed: int) -> Timing:
    config, detector = DataConfig(source="embedded"), load_detector("clf64")
    test = load_images(config, "test")
    with tempfile.TemporaryDirectory() as folder:
        reference = reference_of_data(config, detector, Path(folder))
    started = time.perf_counter()
    found = see(batches_of(test), detector, labels=torch.from_numpy(test.labels))
    value = measure(found, reference, seed=seed)["fd"]["value"]
    return Timing(f"all scores of {len(test):,} images by clf64", "workbench", time.perf_counter() - started, value)


@dataclass(frozen=True)
class Scores:
    """Time each score beside SciPy and torch-fidelity (extra "test") on the same numbers, one thread each."""

    dimensions: Width = 2048
    count: Count = 5000
    report: Path | None = None
    """Also write the figures, with the machine, to this JSON file."""

    def execute(self) -> None:
        harness.check_report(self.report)
        found, console = [], Console()
        table = Table("score", "program", "seconds", "value")
        with console.status("measuring") as status:
            for timing in bench_scores(dimensions=self.dimensions, count=self.count):
                found.append(timing)
                table.add_row(timing.score, timing.program, f"{timing.seconds:.3g}", f"{timing.value:.12g}")
                status.update(Text(f"{timing.score}, {timing.program}: {timing.seconds:.3g} s"))
        console.print(table)
        how = {"dimensions": self.dimensions, "count": self.count}
        harness.write_report(self.report, {"scores": [asdict(timing) for timing in found], **how})


if __name__ == "__main__":
    harness.main(Scores)
