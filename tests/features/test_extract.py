"""Features of a tiny run: what they are, and that what is kept is not computed again."""

import shutil
import threading
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.data.latents import open_latents
from workbench.diffusion.randomness import normal
from workbench.features import extract as module
from workbench.features.extract import extract
from workbench.features.grid import local_distant_similarity, whole_numbers
from workbench.runs.weak import Weak

EVERY = ("null", "true", "wrong", "noise-null", "noise-true")
ROWS = (5, 3, 40, 12)


def everything(grid):
    """All features of a grid, in memory."""
    keys = [(layer, t, label) for layer in grid.layers for t in grid.times for label in grid.labels]
    return {key: grid.read(*key).clone() for key in keys}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_each_label_mode_is_the_network_s_answer(run, root, backbone, passes):
    grid = extract(run, ROWS, [0, 2, 7], [0.4], labels=EVERY, seed=3, root=root)
    latents = open_latents(run.config, "train", root / ".latents")
    shape = (latents.channels, latents.height, latents.height)
    mean, deviation = latents.moments(np.array(ROWS)).chunk(2, dim=1)
    z, eps = mean + deviation * normal(3, "feature-posterior", ROWS, shape), normal(3, "feature-noise", ROWS, shape)
    # 0.6 is not 1 - 0.4 in single precision.
    t = torch.full((4,), 0.4)
    k, u = (1 - t)[:, None, None, None], t[:, None, None, None]
    image, blank = k * z + u * eps, k * normal(3, "feature-noise-image", ROWS, shape) + u * eps
    true = torch.from_numpy(latents.labels[np.array(ROWS)].astype(np.int64))
    assert torch.equal(grid.true, true)
    null, x = torch.full_like(true, 10), {"noise": blank}
    for label, y in zip(EVERY, (null, true, grid.given, null, true), strict=True):
        source = x.get(label.partition("-")[0], image)
        halves = [backbone.features(source[half], t[half], y[half], (0, 2, 7)) for half in (slice(2), slice(2, 4))]
        for layer in (0, 2, 7):
            assert torch.equal(grid.read(layer, 0.4, label), torch.cat([half[layer] for half in halves]))
    assert not torch.equal(grid.read(7, 0.4, "true"), grid.read(7, 0.4, "null"))


def test_features_in_bfloat16_are_close_and_kept_apart(run, root, passes):
    options = {"labels": ("null",), "root": root}
    single = extract(run, ROWS, [7], [0.4], **options)
    half = extract(run, ROWS, [7], [0.4], precision="bf16", **options)
    first, second = (grid.read(7, 0.4, "null") for grid in (single, half))
    assert single.folder != half.folder and not torch.equal(first, second)
    assert (first - second).norm() < 0.05 * first.norm()


def test_features_of_images_that_do_not_fit_at_once(run, root, backbone, passes, monkeypatch):
    """A batch that is too large for the GPU is halved; no image gets other noise or another label."""
    whole = everything(extract(run, ROWS, [7], [0.4], labels=EVERY, root=root))
    shutil.rmtree(root / ".features")
    monkeypatch.setattr(module, "_BATCH", 4)
    features, sizes = backbone.features, []

    def small_gpu(x_t, *rest):
        sizes.append(len(x_t))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return features(x_t, *rest)

    monkeypatch.setattr(backbone, "features", small_gpu)
    assert same(everything(extract(run, ROWS, [7], [0.4], labels=EVERY, root=root)), whole)
    assert sizes == [4] + 2 * len(EVERY) * [2]  # the smaller batch is kept


def test_a_weak_model_has_the_precision_of_the_run(run, root, passes, monkeypatch):
    chosen = []
    monkeypatch.setattr(module, "reduced", lambda precision, device: chosen.append(precision) or nullcontext())
    monkeypatch.setattr(module, "check_weak", lambda *_: None)
    monkeypatch.setattr(module, "find_weak", lambda *_: Weak(run, 2))
    extract(run, ROWS, [7], [0.4], labels=("true",), weak=(run, 2), precision="bf16", root=root)
    shutil.rmtree(root / ".features")
    assert chosen == ["bf16"]  # the features of the same model are found in the cache, under this precision


def test_wrong_labels_are_those_of_the_chosen_images(run, root, passes):
    grid = extract(run, 40, [1], [0.5], labels=("null",), root=root)
    assert sorted(grid.given.tolist()) == sorted(grid.true.tolist()) and not torch.equal(grid.given, grid.true)
    assert (grid.rows, grid.run, grid.step) == (tuple(range(40)), run.name, 2)
    assert grid.classes == tuple("0123456789")
    assert not torch.equal(extract(run, 40, [1], [0.5], labels=("null",), seed=1, root=root).given, grid.given)


def test_images_may_be_those_of_another_set(run, root, passes):
    half = replace(run.config.data, limit=32)
    other = extract(run, 32, [1], [0.5], data=half, root=root)
    expected = open_latents(replace(run.config, data=half), "train", root / ".latents").labels
    assert other.true.tolist() == expected.tolist()
    assert other.folder != extract(run, 32, [1], [0.5], root=root).folder
    with pytest.raises(ValueError, match="33 images are to be read; allowed are 1 to 32, those of the train split"):
        extract(run, 33, [1], [0.5], data=half, root=root)


def test_an_image_s_features_do_not_depend_on_the_others(run, root, passes):
    together, alone = (extract(run, rows, [4], [0.3], root=root) for rows in (ROWS, ROWS[2:3]))
    torch.testing.assert_close(alone.read(4, 0.3, "true"), together.read(4, 0.3, "true")[2:3], rtol=1e-4, atol=1e-5)


def test_what_is_kept_is_read_back(run, root, passes):
    first = everything(extract(run, ROWS, [2, 5], [0.2, 0.7], root=root))
    assert passes == 8 * [(2, (2, 5))]  # two times, two label modes, two batches: both layers of one pass
    second = everything(extract(run, ROWS, [2, 5], [0.2, 0.7], root=root))
    assert same(first, second) and len(passes) == 8
    shutil.rmtree(root / ".features")
    assert same(everything(extract(run, ROWS, [2, 5], [0.2, 0.7], root=root)), first)


def test_more_layers_and_times_cost_only_what_is_missing(run, root, passes):
    extract(run, ROWS, [2, 6], [0.2], root=root)
    passes.clear()
    grid = extract(run, ROWS, [2, 4, 6], [0.2, 0.5], root=root)
    # At the old time one layer, no deeper than it; at the new one all.
    assert passes == 4 * [(2, (4,))] + 4 * [(2, (2, 4, 6))]
    found = everything(grid)
    shutil.rmtree(root / ".features")
    assert same(everything(extract(run, ROWS, [2, 4, 6], [0.2, 0.5], root=root)), found)


@pytest.mark.parametrize("change", [{"seed": 1}, {"dtype": "float16"}, {"pooling": "mean"}, {"split": "test"}])
def test_features_of_something_else_are_kept_apart(run, root, passes, change):
    first = extract(run, ROWS, [2], [0.2], root=root)
    passes.clear()
    other = extract(run, ROWS, [2], [0.2], root=root, **change)
    assert len(passes) == 4 and other.folder != first.folder


def test_a_call_that_was_cut_off_goes_on(run, root, passes, tmp_path):
    counts = []

    def killer(done, total):
        counts.append((done, total))
        if done == 6:  # in the middle of the second of four passes
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(run, ROWS, [2, 5], [0.2, 0.7], root=root, progress=killer)
    assert counts == [(2, 16), (4, 16), (6, 16)]
    folder = next((root / ".features").iterdir())
    assert len(list(folder.glob("*.npy"))) == 2 and not list(folder.glob("*.part"))
    (folder / "true-t0.2-layer02-features.part").write_bytes(b"left by a kill that nothing could catch")
    counts.clear()
    resumed = extract(run, ROWS, [2, 5], [0.2, 0.7], root=root, progress=lambda *count: counts.append(count))
    assert counts == [(2, 12), (4, 12), (6, 12), (8, 12), (10, 12), (12, 12)]
    assert not list(folder.glob("*.part"))
    found = everything(resumed)
    shutil.rmtree(root / ".features")
    assert same(everything(extract(run, ROWS, [2, 5], [0.2, 0.7], root=root)), found)


def test_two_at_once_share_the_work(run, root, passes):
    found = []

    def job():
        found.append(everything(extract(run, ROWS, [3], [0.2, 0.6], root=root)))

    threads = [threading.Thread(target=job) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passes) == 8 and same(*found)


def test_guidance_is_linear_and_exact_at_both_ends(run, root, passes):
    grid = extract(run, ROWS, [7], [0.4], labels=EVERY, root=root)
    for image, (low, high) in {"true": EVERY[:2], "wrong": ("null", "wrong"), "noise": EVERY[3:]}.items():
        f_u, f_c = grid.read(7, 0.4, low), grid.read(7, 0.4, high)
        assert torch.equal(grid.guided(7, 0.4, 0.0, image), f_u)
        assert torch.equal(grid.guided(7, 0.4, 1.0, image), f_c)
        torch.testing.assert_close(grid.guided(7, 0.4, 30.0, image), f_u + 30 * (f_c - f_u))
    with pytest.raises(ValueError, match="image is 'null'; allowed are true, wrong, noise"):
        grid.guided(7, 0.4, 1.0, "null")
    with pytest.raises(ValueError, match="scale is nan; allowed are finite numbers"):
        grid.guided(7, 0.4, float("nan"))


def test_no_number_is_rounded_to_a_layer():
    assert whole_numbers("layers", np.arange(2)) == [0, 1] == whole_numbers("layers", torch.arange(2))
    for given, said in (([1, 1.7], "layers has 1.7"), (2.5, "layers is 2.5"), ("ab", "layers has 'a'")):
        with pytest.raises(ValueError, match=f"^{said}; allowed are whole numbers"):
            whole_numbers("layers", given)


def test_what_was_not_extracted_is_refused_with_what_was(run, root, passes):
    grid = extract(run, ROWS, [2, 7], [0.1, 0.3], root=root)
    for place, said in (
        ((3, 0.1), "layer 3 was not extracted; there are 2, 7"),
        ((2, 0.1 + 0.2), "t 0.30000000000000004 was not extracted; there are 0.1, 0.3"),
        ((2, 0.1, "wrong"), "label 'wrong' was not extracted; there are 'null', 'true'"),
    ):
        with pytest.raises(ValueError, match=said):
            grid.read(*place)


def test_mean_tokens_keep_the_lds(run, root, passes):
    tokens = extract(run, ROWS, [2, 7], [0.4], root=root)
    means = extract(run, ROWS, [2, 7], [0.4], pooling="mean", root=root)
    for layer, label in ((2, "null"), (7, "true")):
        kept = tokens.read(layer, 0.4, label)
        # Means over another number of images may be added up in another order.
        torch.testing.assert_close(means.read(layer, 0.4, label), kept.mean(dim=1), rtol=0, atol=1e-6)
        assert torch.equal(tokens.pooled(kept), kept.mean(dim=1))
        assert torch.equal(means.pooled(kept[:, 0]), kept[:, 0])
        torch.testing.assert_close(means.lds(layer, 0.4, label), local_distant_similarity(kept))
        assert torch.equal(tokens.lds(layer, 0.4, label), local_distant_similarity(kept))


def test_half_precision_halves_the_file_and_refuses_what_it_cannot_hold(run, root, passes, backbone, monkeypatch):
    whole, half = (extract(run, ROWS, [7], [0.4], dtype=dtype, root=root) for dtype in ("float32", "float16"))
    assert half.read(7, 0.4).dtype == torch.float16 and half.guided(7, 0.4, 2.0).dtype == torch.float32
    torch.testing.assert_close(half.read(7, 0.4).float(), whole.read(7, 0.4), rtol=1e-3, atol=1e-5)
    monkeypatch.setattr(backbone, "features", lambda x_t, t, y, layers: {7: torch.full((len(x_t), 16, 32), 7e4)})
    with pytest.raises(ValueError, match="layer 7, t = 0.5, null: numbers up to 7e\\+04 do not fit float16"):
        extract(run, ROWS, [7], [0.5], dtype="float16", root=root)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": 0}, "images is 0; allowed are 1 to 64"),
        ({"images": [1, 1]}, "allowed are 1 to 64, or different row numbers of 0 to 63"),
        ({"images": [64]}, "row numbers of 0 to 63"),
        ({"layers": [13]}, "layer 13 is outside 0..12"),
        ({"layers": [-1]}, "layers has -1; allowed are 0"),
        ({"times": [1.5]}, "times has 1.5; allowed are 0 to 1"),
        ({"times": []}, "times has nothing; allowed are 0 to 1"),
        ({"labels": ["false"]}, "labels has 'false'; allowed are null, true, wrong, noise-null, noise-true"),
        ({"step": 1}, "has no checkpoint of step 1"),
    ],
)
def test_arguments_are_checked(run, root, passes, changed, said):
    settings = {"images": 4, "layers": [1], "times": [0.5], **changed}
    with pytest.raises(ValueError, match=said):
        extract(run, **settings, root=root)
