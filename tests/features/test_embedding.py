import itertools
import logging
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness

from workbench.features import embedding as module
from workbench.features.embedding import embed, embed_cached, embed_sequence, purity

COUNT = 200


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def digits():
    rows, labels = load_digits(return_X_y=True)
    return torch.tensor(rows[:300]).float(), torch.tensor(labels[:300])


def drifting(rows, steps=3, size=0.15):
    """The same rows moving a little further at each step."""
    return [rows + step * size * rows.std() * draw(*rows.shape) for step in range(steps)]


def distances(points):
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def moved(embeddings):
    """Mean distance that points move from one embedding to the next, in spreads."""
    return np.mean(
        [(b.points - a.points).norm(dim=1).mean() / a.points.std() for a, b in itertools.pairwise(embeddings)]
    )


def test_pca_is_the_first_two_components(digits):
    rows, labels = digits
    found = embed(rows, "pca", seed=0, labels=labels)
    expected = PCA(2, svd_solver="full").fit_transform(rows.double())
    np.testing.assert_allclose(found.points.abs(), np.abs(expected), atol=1e-3)
    assert found.trustworthiness == pytest.approx(trustworthiness(rows, expected, n_neighbors=12), abs=1e-3)
    assert found.purity == purity(found.points, labels) and embed(rows, "pca", seed=0).purity is None


def test_tsne_preserves_neighbours_like_that_of_scikit_learn(digits):
    rows, labels = digits
    found = embed(rows, "tsne", seed=0, labels=labels)
    other = TSNE(perplexity=30, random_state=0, init="pca").fit_transform(rows.numpy())
    theirs = trustworthiness(rows, other, n_neighbors=12)
    assert found.trustworthiness == pytest.approx(theirs, abs=0.01) and theirs > 0.97
    assert found.purity == pytest.approx(purity(torch.tensor(other), labels), abs=0.04)
    assert found.trustworthiness > embed(rows, "pca", seed=0).trustworthiness + 0.05


def test_a_seed_gives_the_same_points(digits):
    rows, _ = digits
    one, again, other = (embed(rows[:COUNT], "tsne", seed=seed).points for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_a_sequence_moves_less_than_embeddings_alone(digits, caplog):
    sets = drifting(digits[0][:COUNT])
    done = []
    sequence = embed_sequence(sets, "tsne", seed=0, progress=lambda *now: done.append(now))
    assert done == [(1, 3), (2, 3), (3, 3)]
    alone = [embed(rows, "tsne", seed=0) for rows in sets]
    assert torch.equal(sequence[0].points, alone[0].points)
    assert moved(sequence) < 0.5 * moved(alone)
    for one, other in zip(sequence, alone, strict=True):
        assert one.trustworthiness > other.trustworthiness - 0.02
    # Even where much of the rows is new, points go on from where they were.
    far = sets[0] + sets[0].std() * draw(*sets[0].shape, seed=9)
    assert moved([sequence[0], embed(far, "tsne", seed=0, start=sequence[0].points)]) < 0.8
    assert [one.settings["warm"] for one in sequence] == [False, True, True]
    assert not caplog.records and logging.getLogger("openTSNE.tsne").level == logging.NOTSET


def test_a_sequence_of_pca_undoes_turns_and_keeps_each_picture(digits):
    rows = digits[0][:COUNT]
    swapped = rows * torch.linspace(1, 0.9, 64)
    turned = swapped @ torch.linalg.qr(draw(64, 64)).Q
    one, two, three = embed_sequence([rows, swapped, turned], "pca", seed=0)
    torch.testing.assert_close(two.points, three.points, atol=1e-3, rtol=1e-3)
    alone = embed(turned, "pca", seed=0).points
    torch.testing.assert_close(distances(three.points), distances(alone), atol=1e-3, rtol=1e-3)
    assert moved([one, two]) <= moved([one, embed(swapped, "pca", seed=0)]) + 1e-6


def test_widths_may_differ_along_a_sequence(digits):
    rows = digits[0][:COUNT]
    one, two = embed_sequence([rows, torch.cat([rows, torch.zeros(COUNT, 5)], dim=1)], "pca", seed=0)
    torch.testing.assert_close(one.points, two.points, atol=1e-3, rtol=1e-3)


def test_umap_is_reproducible_quiet_and_starts_where_it_is_told(digits):
    rows, labels = digits[0][:COUNT], digits[1][:COUNT]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two = embed_sequence(drifting(rows, 2), "umap", seed=0, labels=labels)
    assert torch.equal(one.points, embed(rows, "umap", seed=0).points)
    assert one.trustworthiness > 0.95 and one.purity > 0.6
    alone = embed(drifting(rows, 2)[1], "umap", seed=0)
    assert moved([one, two]) < moved([one, alone])
    assert two.settings["neighbours"] == 15 and two.settings["library"].startswith("umap-learn ")


def test_points_are_centred_and_duplicates_allowed(digits):
    rows = digits[0][:COUNT].clone()
    rows[:20] = rows[0]
    found = embed(rows, "tsne", seed=0, perplexity=10.0)
    assert found.points.isfinite().all() and found.points.mean(dim=0).abs().max() < 1e-3
    line = torch.linspace(0, 1, 10)[:, None]
    assert not embed(line, "pca", seed=0).points[:, 1].any()


def test_purity_by_hand_and_by_chance():
    # On a line 0 1 2 | 10 11 12 with one wrong label, at 12: of the 2 nearest others have the own label
    # 2 2 2 of the left, 1 1 of the right two, 0 of the last: 8 of 12.
    points = torch.tensor([0.0, 1, 2, 10, 11, 12])[:, None] * torch.tensor([[1.0, 0.5]])
    assert purity(points, torch.tensor([0, 0, 0, 1, 1, 0]), k=2) == pytest.approx(8 / 12)
    labels = torch.arange(4000) % 10
    assert purity(draw(4000, 2), labels) == pytest.approx(0.1, abs=0.01)


def test_an_embedding_is_kept_until_anything_changes(digits, tmp_path, monkeypatch):
    rows, labels = digits[0][:COUNT], digits[1][:COUNT]
    first = embed_cached(tmp_path / "new", rows, "pca", seed=0)
    (file,) = (tmp_path / "new").iterdir()
    calls = []
    monkeypatch.setattr(module, "embed", lambda *told, **options: calls.append(told) or embed(*told, **options))
    again = embed_cached(tmp_path / "new", rows, "pca", seed=0, labels=labels)
    assert not calls and torch.equal(again.points, first.points) and again.settings == first.settings
    assert again.trustworthiness == first.trustworthiness and again.purity == purity(first.points, labels)
    changed = rows.clone()
    changed[3, 3] += 1
    for count, told in enumerate(({"rows": changed}, {"seed": 1}, {"start": first.points}, {"reduce": 9}), start=1):
        embed_cached(tmp_path / "new", **{"rows": rows, "method": "pca", "seed": 0, **told})
        assert len(calls) == count
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.warns(UserWarning, match="damaged and computed again"):
        mended = embed_cached(tmp_path / "new", rows, "pca", seed=0)
    assert torch.equal(mended.points, first.points) and len(calls) == 5
    np.savez(file, points=np.full((COUNT, 2), np.nan, np.float32), trust=0.9, settings="{}")
    with pytest.warns(UserWarning, match=f"damaged and computed again: its points are not {COUNT} finite ones"):
        mended = embed_cached(tmp_path / "new", rows, "pca", seed=0)
    assert torch.equal(mended.points, first.points) and len(calls) == 6


def test_a_sequence_is_kept_link_by_link(digits, tmp_path):
    sets = drifting(digits[0][:COUNT], 2)
    first = embed_sequence(sets, "tsne", seed=0, folder=tmp_path, labels=digits[1][:COUNT])
    assert len(list(tmp_path.iterdir())) == 2
    second = embed_sequence([*sets, sets[0]], "tsne", seed=0, folder=tmp_path)
    assert torch.equal(first[1].points, second[1].points) and len(list(tmp_path.iterdir())) == 3
    assert first[1].purity > 0.5 and second[1].purity is None


def test_what_is_refused(digits, tmp_path):
    rows = digits[0][:COUNT]
    broken = rows.clone()
    broken[5, 5] = torch.inf
    for call, words in (
        (lambda: embed(rows, "mds", seed=0), "allowed are pca, tsne, umap"),
        (lambda: embed_cached(tmp_path, rows, "mds", seed=0), "allowed are pca, tsne, umap"),
        (lambda: embed(rows[:90], "tsne", seed=0), "1 to below 30"),
        (lambda: embed(rows[:15], "umap", seed=0), "2 to 14"),
        (lambda: embed(broken, "pca", seed=0), "not finite"),
        (lambda: embed(torch.ones(9, 5), "pca", seed=0), "equal"),
        (lambda: embed(rows, "tsne", seed=0, reduce=1), "2 or more"),
        (lambda: embed(rows, "tsne", seed=0, start=torch.full((COUNT, 2), torch.nan)), "not finite"),
        (lambda: embed_sequence([rows, rows[:-1]], "pca", seed=0), r"\[199, 200\] rows"),
        (lambda: embed_sequence([], "pca", seed=0), "one or more"),
        (lambda: purity(rows[:20], digits[1][:20]), "allowed are 1 to 19"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can become another user")
def test_umap_works_where_neither_packages_nor_home_can_be_written():
    keep = "+dac_read_search"  # to read packages that root alone may
    other = [
        "setpriv",
        "--reuid=54321",
        "--regid=54321",
        "--clear-groups",
        f"--inh-caps={keep}",
        f"--ambient-caps={keep}",
    ]
    environment = {key: value for key, value in os.environ.items() if key not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    # Importing it is what fails where nothing can be cached; compiling takes half a minute.
    code = "from workbench.features.embedding import _let_numba_cache as let; let(); import umap, os; "
    code += "print(os.listdir(os.environ['NUMBA_CACHE_DIR']))"
    done = subprocess.run(
        [*other, sys.executable, "-W", "ignore", "-c", code],
        env={**environment, "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0 and done.stdout.startswith("["), done.stderr


def test_a_folder_for_the_compiler_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/dev/null/numba")
    with pytest.raises(ValueError, match="NUMBA_CACHE_DIR is /dev/null/numba, which cannot be written"):
        embed(draw(20, 4), "umap", seed=0, neighbours=5)
