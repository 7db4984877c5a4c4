import numpy as np
import pytest
import torch
from einops import rearrange
from matplotlib import colormaps
from sklearn.decomposition import PCA

from workbench.features.colours import colours, map_components


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def signed(pca):
    return np.sign(pca.components_[np.arange(3), np.abs(pca.components_).argmax(axis=1)])


def tokens_of(n=3, side=4, d=6):
    return draw(n, side * side, d) * torch.linspace(3, 0.5, d) + 5


def test_colours_are_the_pca_over_all_images_between_its_percentiles():
    tokens = tokens_of()
    components = map_components(tokens)
    maps, share = components.colours().maps, float(components.explained.sum())
    flat = rearrange(tokens, "n m d -> (n m) d").numpy()
    pca = PCA(3, svd_solver="full").fit(flat)
    scores = pca.transform(flat) * signed(pca)
    low, high = np.percentile(scores, [2, 98], axis=0)
    expected = rearrange(((scores - low) / (high - low)).clip(0, 1), "(n h w) c -> n h w c", h=4, w=4)
    np.testing.assert_allclose(maps, expected, atol=1e-5)
    assert share == pytest.approx(pca.explained_variance_ratio_.sum(), rel=1e-6)


def test_per_map_is_the_pca_of_each_image_between_its_extremes():
    tokens = tokens_of()
    components = map_components(tokens, "per map")
    painted = components.colours()
    assert painted.limits.shape == (3, 2, 3)
    shares = []
    for image, each in enumerate(tokens.numpy()):
        pca = PCA(3, svd_solver="full").fit(each)
        scores = pca.transform(each) * signed(pca)
        np.testing.assert_allclose(components.coordinates[image], scores, atol=1e-4)
        expected = (scores - scores.min(axis=0)) / np.ptp(scores, axis=0)
        np.testing.assert_allclose(painted.maps[image], rearrange(expected, "(h w) c -> h w c", h=4), atol=1e-5)
        shares.append(pca.explained_variance_ratio_)
    np.testing.assert_allclose(components.explained, np.mean(shares, axis=0), rtol=1e-4)
    # An image's map does not depend on the others.
    np.testing.assert_allclose(map_components(tokens[1:2], "per map").colours().maps[0], painted.maps[1], atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_foreground_is_found_whatever_the_sign(sign):
    # A square of 4 x 4 in the middle of 8 x 8 stands far off along one direction; inside it other directions vary.
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 2:6] = True
    mask = rearrange(inside, "h w -> (h w)").expand(2, -1)
    tokens = 0.1 * draw(2, 64, 5)
    tokens[mask] += torch.tensor([sign * 20.0, 0, 0, 0, 0])
    tokens[mask] += draw(32, 5, seed=1) * torch.tensor([0, 1, 2, 3, 0])
    components = map_components(tokens, "foreground")
    assert torch.equal(components.foreground, mask)
    chosen = tokens[mask].double().numpy()
    pca = PCA(3, svd_solver="full").fit(chosen)
    np.testing.assert_allclose(components.coordinates[mask], pca.transform(chosen) * signed(pca), atol=1e-4)
    np.testing.assert_allclose(components.explained, pca.explained_variance_ratio_, rtol=1e-6)
    painted = components.colours()
    assert not painted.maps[:, ~inside].any() and painted.maps[:, inside].max() == 1
    np.testing.assert_allclose(painted.limits, np.percentile(components.coordinates[mask], [2, 98], axis=0), atol=1e-6)


def test_a_large_middle_is_foreground_and_of_equal_distances_the_smaller_side():
    tokens = torch.zeros(1, 36, 4)
    corners = torch.zeros(6, 6, dtype=torch.bool)
    corners[::5, ::5] = True  # 4 tokens, all far from the middle: the larger side is foreground
    outside = rearrange(corners, "h w -> 1 (h w)")
    tokens[outside] = torch.tensor([9.0, 0, 0, 0])
    tokens[~outside] += draw(32, 4) * 0.1
    assert torch.equal(map_components(tokens, "foreground").foreground, ~outside)
    # Of 2 x 2 tokens all are as far from the middle.
    image = torch.tensor([[9.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    found = map_components(torch.stack([image, image + 0.01 * draw(4, 3)]), "foreground").foreground
    assert found.tolist() == [[True, False, False, False]] * 2


def test_one_component_is_shown_in_viridis():
    tokens = tokens_of()
    components = map_components(tokens, "single")
    assert components.coordinates.shape == (3, 16, 1)
    torch.testing.assert_close(components.coordinates, map_components(tokens).coordinates[..., :1])
    painted = components.colours("minmax")
    score = rearrange(components.coordinates[..., 0], "n (h w) -> n h w", h=4).double().numpy()
    (low,), (high,) = painted.limits
    assert (low, high) == (score.min(), score.max())
    np.testing.assert_allclose(painted.maps, colormaps["viridis"]((score - low) / (high - low))[..., :3], atol=0.01)


def test_limits_of_one_picture_colour_another():
    coordinates = torch.tensor([0.0, 1, 2, 4]).reshape(1, 4, 1).expand(1, 4, 3)
    first = colours(coordinates, "minmax")
    assert first.limits.tolist() == [[0, 0, 0], [4, 4, 4]]
    np.testing.assert_allclose(first.maps[0, :, :, 0], [[0, 0.25], [0.5, 1]])
    again = colours(coordinates * 2 - 1, limits=first.limits)
    np.testing.assert_allclose(again.maps[0, :, :, 1], [[0, 0.25], [0.75, 1]])
    # 2 % and 98 % of the way along 0, 1, 2, 4, interpolated: 0.06 and 2 + 0.94 * 2.
    np.testing.assert_allclose(colours(coordinates).limits[:, 0], [0.06, 3.88])


def test_a_flat_component_is_black_and_the_note_says_where_one_has_all():
    coordinates = torch.zeros(1, 4, 3)
    assert not colours(coordinates).maps.any()
    tokens = tokens_of()
    assert map_components(tokens).note is None
    tokens[..., 1] *= 100
    assert map_components(tokens, "single").note == "mostly position or norm outliers"


def _spoilt(tokens):
    tokens = tokens.clone()
    tokens[1, 2, 1] = torch.inf
    return tokens


def test_what_is_refused():
    tokens = tokens_of()
    for call, words in (
        (lambda: map_components(tokens, "whole"), "allowed are joint, per map, foreground, single"),
        (lambda: map_components(tokens[:, :2], "per map"), "need 3 of each"),
        (lambda: map_components(torch.ones(2, 4, 5), "per map"), "image 0 are equal"),
        (lambda: map_components(_spoilt(tokens), "per map"), "tokens of image 1 are not all finite"),
        (lambda: map_components(_spoilt(tokens)), "not all finite"),
        (lambda: colours(_spoilt(tokens)[..., :3]), "not all finite, so they have no colour"),
        (lambda: map_components(tokens[:, :15]).colours(), "square"),
        (lambda: colours(tokens[..., :2]), "allowed are 3"),
        (lambda: colours(tokens[..., :3], "sigma"), "allowed are percentile, minmax"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
