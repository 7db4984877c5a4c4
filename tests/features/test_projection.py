import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from einops import rearrange
from sklearn.decomposition import PCA

from workbench.features.directions import principal, procrustes
from workbench.features.projection import project, project_pair

TIMES = (0.3, 0.7)
SCALES = (-1.0, 0.0, 0.5, 1.0, 7.5)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(n=3, m=16, d=12, seed=0):
    """f_u and f_c at two times, with unequal variances and a mean far from zero."""
    sizes = torch.linspace(3, 0.2, d)
    f_u = {t: draw(n, m, d, seed=seed + i) * sizes + 20 for i, t in enumerate(TIMES)}
    return f_u, {t: f + draw(n, m, d, seed=seed + 10 + i) + 0.5 for i, (t, f) in enumerate(f_u.items())}


def guided(f_u, f_c, t, w):
    return f_u[t] + w * (f_c[t] - f_u[t])


def rows(tokens):
    return rearrange(tokens, "n m d -> (n m) d").double().numpy()


def rotation(size, seed=5):
    return torch.linalg.qr(draw(size, size, seed=seed).double()).Q


def test_the_basis_is_the_pca_of_everything_pooled():
    f_u, f_c = pair()
    projection = project(f_u, f_c, components=4)
    pooled = np.concatenate([rows(of[t]) for of in (f_u, f_c) for t in TIMES])
    pca = PCA(4, svd_solver="full").fit(pooled)
    np.testing.assert_allclose(projection.mean, pca.mean_, rtol=1e-10)
    np.testing.assert_allclose(projection.explained, pca.explained_variance_ratio_, rtol=1e-8)
    np.testing.assert_allclose(np.abs(projection.basis.T.numpy() @ pca.components_.T), np.eye(4), atol=1e-7)
    largest = projection.basis.abs().argmax(dim=0)
    assert (projection.basis[largest, torch.arange(4)] > 0).all()


@pytest.mark.parametrize("w", SCALES)
def test_coordinates_at_any_scale_are_those_of_the_guided_feature_itself(w):
    f_u, f_c = pair()
    projection = project(f_u, f_c, components=5)
    for t in TIMES:
        direct = (guided(f_u, f_c, t, w).double() - projection.mean) @ projection.basis
        torch.testing.assert_close(projection.at(t, w).double(), direct, atol=2e-5, rtol=1e-5)
    difference = (f_c[0.3] - f_u[0.3]).double() @ projection.basis
    torch.testing.assert_close(projection.d[0.3].double(), difference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("w", SCALES)
def test_a_refit_in_the_whole_width_is_the_pca_of_the_guided_feature(w):
    f_u, f_c = pair()
    refit = project(f_u, f_c, components=12).refit(0.7, w, align=False)
    pca = PCA(3, svd_solver="full").fit(rows(guided(f_u, f_c, 0.7, w)))
    np.testing.assert_allclose(refit.explained, pca.explained_variance_ratio_, rtol=1e-5)
    signs = np.sign(pca.components_[np.arange(3), np.abs(pca.components_).argmax(axis=1)])
    expected = pca.transform(rows(guided(f_u, f_c, 0.7, w))) * signs
    np.testing.assert_allclose(rearrange(refit.coordinates, "n m c -> (n m) c"), expected, atol=1e-3)
    assert refit.left_out == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("w", SCALES)
def test_what_is_left_out_and_shown_is_exact(w):
    f_u, f_c = pair()
    projection = project(f_u, f_c, components=5)
    f_g = rows(guided(f_u, f_c, 0.3, w))
    centred = f_g - f_g.mean(axis=0)
    inside = centred @ projection.basis.numpy()
    total = np.square(centred).sum()
    refit = projection.refit(0.3, w)
    assert refit.left_out == pytest.approx(1 - np.square(inside).sum() / total, abs=1e-6)
    np.testing.assert_allclose(projection.energy(0.3, w), np.square(inside[:, :3]).sum(axis=0) / total, atol=1e-6)
    # Inside the subspace nothing shows more than the refit: its shares are those of a PCA of the inside alone.
    of_inside = PCA(3, svd_solver="full").fit(inside).explained_variance_ratio_ * (1 - refit.left_out)
    np.testing.assert_allclose(refit.explained, of_inside, atol=1e-6)
    assert projection.energy(0.3, w).sum() <= refit.explained.sum() + 1e-9 <= 1 - refit.left_out + 1e-6


def test_moments_by_hand():
    # One image, width 3, f_u = -1, 1, 0, 0 and d = 0, 0, 2, -2 in the first dimension, else 0.
    f_u = torch.zeros(1, 4, 3)
    f_u[0, :2, 0] = torch.tensor([-1.0, 1.0])
    f_c = f_u.clone()
    f_c[0, 2:, 0] = torch.tensor([2.0, -2.0])
    moments = project({0.5: f_u}, {0.5: f_c}, components=1).moments[0.5]
    assert (moments.total_uu, moments.total_ud, moments.total_dd) == pytest.approx((0.5, 0, 2))
    assert moments.total(3.0) == pytest.approx(0.5 + 9 * 2) == float(moments.covariance(3.0))


def test_an_aligned_refit_is_the_same_picture_turned_onto_the_fixed_one():
    f_u, f_c = pair()
    projection = project(f_u, f_c, components=6)
    for w in SCALES:
        plain, aligned = (
            rearrange(projection.refit(0.3, w, align=a).coordinates, "n m c -> (n m) c") for a in (False, True)
        )
        torch.testing.assert_close(plain @ plain.T, aligned @ aligned.T, atol=1e-3, rtol=1e-3)
        fixed = rearrange(projection.at(0.3, w)[..., :3], "n m c -> (n m) c")
        # The best orthogonal matrix onto the fixed scores is then none.
        torch.testing.assert_close(procrustes(aligned, fixed), torch.eye(3).double(), atol=1e-3, rtol=0)


def test_procrustes_recovers_rotations_and_mirrorings():
    scores = draw(50, 3).double()
    for turn in (rotation(3), rotation(3) @ torch.diag(torch.tensor([1.0, 1.0, -1.0]).double())):
        torch.testing.assert_close(procrustes(scores, scores @ turn + 4), turn)
    assert torch.linalg.det(rotation(3)) * torch.linalg.det(rotation(3) * torch.tensor([1, 1, -1])) < 0


def test_a_projection_turned_is_aligned_back():
    f_u, f_c = pair()
    projection = project(f_u, f_c, components=5)
    turned = replace(projection, u={t: projection.u[t] for t in TIMES})
    reference = projection.at(0.7, 1.0)[..., :3].double() @ rotation(3)
    turned = turned.aligned_to(reference.float(), 0.7)
    torch.testing.assert_close(turned.at(0.7, 1.0)[..., :3].double(), reference, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(turned.at(0.7, 1.0)[..., 3:], projection.at(0.7, 1.0)[..., 3:])
    pooled = torch.cat([turned.at(t, w) for t in TIMES for w in (0.0, 1.0)]).double()
    torch.testing.assert_close(turned.explained, pooled.square().mean(dim=(0, 1)) / turned.total, atol=1e-6, rtol=1e-5)
    assert turned.explained.sum() == pytest.approx(float(projection.explained.sum()))
    # All of the record turned: it still describes the features, and a refit finds the same components.
    direct = (guided(f_u, f_c, 0.3, 2.0).double() - turned.mean) @ turned.basis
    torch.testing.assert_close(turned.at(0.3, 2.0).double(), direct, atol=1e-4, rtol=1e-4)
    coordinates = rows(turned.at(0.3, 2.0))
    np.testing.assert_allclose(
        turned.moments[0.3].covariance(2.0), np.cov(coordinates.T, bias=True), atol=1e-4, rtol=1e-4
    )
    one, other = (p.refit(0.3, 2.0, align=False) for p in (projection, turned))
    torch.testing.assert_close(one.coordinates, other.coordinates, atol=1e-4, rtol=1e-4)
    back = turned.aligned_to(projection.at(0.7, 1.0), 0.7)
    torch.testing.assert_close(back.explained, projection.explained, atol=1e-6, rtol=0)


def test_two_models_whose_features_are_rotations_look_the_same():
    f_u, f_c = pair()
    wider = rotation(20)[:12].float()  # an isometry of 12 into 20 dimensions
    other = tuple({t: f @ wider + 3 for t, f in of.items()} for of in (f_u, f_c))
    one, two = project_pair((f_u, f_c), other, components=4)
    for t in TIMES:
        for w in SCALES:
            torch.testing.assert_close(one.at(t, w)[..., :3], two.at(t, w)[..., :3], atol=1e-3, rtol=1e-3)


def test_the_second_of_two_models_is_turned_onto_the_first():
    first, second = pair(), pair(d=20, seed=40)
    one, two = project_pair(first, second, components=4)
    assert torch.equal(one.basis, project(*first, components=4).basis)
    assert not torch.equal(two.basis[:, :3], project(*second, components=4).basis[:, :3])
    scores, reference = (
        torch.cat([rearrange(p.at(t, w)[..., :3], "n m c -> (n m) c") for t in TIMES for w in (0.0, 1.0)])
        for p in (two, one)
    )
    torch.testing.assert_close(procrustes(scores, reference), torch.eye(3).double(), atol=1e-4, rtol=0)


def test_one_set_is_the_same_at_any_scale():
    tokens = draw(3, 9, 5)
    projection = project(tokens, components=3)
    assert projection.times == (0.0,)
    assert torch.equal(projection.at(0.0, 0.0), projection.at(0.0, 30.0))
    expected = PCA(3, svd_solver="full").fit(rows(tokens)).explained_variance_ratio_
    np.testing.assert_allclose(projection.energy(0.0, 4.0), expected, rtol=1e-6)
    several = project({t: tokens * (1 + t) for t in TIMES}, components=3)
    assert several.times == TIMES and several.at(0.7, 3.0).shape == (3, 9, 3)


def test_parts_of_images_make_no_difference(monkeypatch):
    f_u, f_c = pair()
    whole = project(f_u, f_c, components=4)
    monkeypatch.setattr("workbench.features.projection._ROWS", 32)
    parts = project(f_u, f_c, components=4)
    torch.testing.assert_close(whole.at(0.3, 2.0), parts.at(0.3, 2.0), atol=1e-5, rtol=1e-5)
    assert parts.moments[0.3].total(2.0) == pytest.approx(whole.moments[0.3].total(2.0))


def test_half_precision_is_taken():
    f_u, f_c = pair()
    half = project({t: f.half() for t, f in f_u.items()}, {t: f.half() for t, f in f_c.items()}, components=3)
    torch.testing.assert_close(half.at(0.3, 1.0), project(f_u, f_c, components=3).at(0.3, 1.0), atol=0.05, rtol=0.01)


def test_one_component_with_almost_everything_is_noted():
    tokens = draw(2, 16, 4)
    assert project(tokens, components=3).refit(0.0, 0.0).note is None
    tokens[..., 0] *= 50
    assert project(tokens, components=3).refit(0.0, 0.0).note == "mostly position or norm outliers"


def test_what_is_refused():
    f_u, f_c = pair()
    projection = project(f_u, f_c, components=4)
    for call, words in (
        (lambda: projection.at(0.5, 1.0), "there are 0.3, 0.7"),
        (lambda: projection.at(0.3, math.nan), "w is nan; allowed are finite"),
        (lambda: projection.energy(0.3, math.inf), "w is inf; allowed are finite"),
        (lambda: projection.refit(0.3, -math.inf), "w is -inf; allowed are finite"),
        (lambda: projection.aligned_to(torch.full((3, 16, 3), torch.nan), 0.3), "the reference are not all finite"),
        (lambda: principal(torch.full((3, 3), torch.nan).double(), 2), "not all finite"),
        (lambda: projection.refit(0.3, 1.0, 5), "allowed are 1 to the 4"),
        (lambda: projection.aligned_to(draw(3, 9, 3), 0.3), "must be the same tokens"),
        (lambda: project(f_u, f_c, components=13), "allowed are 1 to the width, 12"),
        (lambda: project(f_u, {0.3: f_c[0.3]}), "allowed are the same"),
        (lambda: project({}), "one or more"),
        (lambda: project({0.3: f_u[0.3], 0.7: f_u[0.7][:2]}), "the same tokens of one layer"),
        (lambda: project(torch.ones(2, 4, 9)), "all tokens are equal"),
        (lambda: project(torch.full((2, 4, 9), torch.nan)), "not all finite"),
        (lambda: project_pair((f_u, f_c), ({0.5: f_u[0.3]}, {0.5: f_c[0.3]})), "no time in common"),
        (lambda: project_pair((f_u, f_c), pair(m=9), components=3), "must be the same"),
        (lambda: principal(torch.eye(3).double(), 4), "allowed are 1 to the width, 3"),
        (lambda: project({0.0: draw(2, 4, 5), 0.5: torch.ones(2, 4, 5)}, components=3).energy(0.5, 0.0), "no variance"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
