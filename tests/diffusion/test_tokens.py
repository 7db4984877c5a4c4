"""Patch layout by hand and by round trips."""

import pytest
import torch

from workbench.diffusion.tokens import patchify, to_map, unpatchify


def test_layout_by_hand():
    # Channel 0 is the grid 0..7 of 2 rows and 4 columns, channel 1 the same plus 10. The left token takes
    # (row 0: 0, 1), (row 1: 4, 5), the two channels of a pixel side by side.
    grid = torch.arange(8.0).reshape(1, 1, 2, 4)
    tokens = patchify(torch.cat([grid, grid + 10], dim=1), 2)
    assert tokens.tolist() == [[[0, 10, 1, 11, 4, 14, 5, 15], [2, 12, 3, 13, 6, 16, 7, 17]]]


def test_tokens_run_row_by_row():
    z = torch.zeros(1, 1, 4, 6)
    z[0, 0, 2, 0] = 1  # second row of patches, first column: token 1 * 3 + 0
    assert patchify(z, 2).sum(-1).tolist() == [[0, 0, 0, 1, 0, 0]]


@pytest.mark.parametrize(("patch", "height", "width"), [(1, 3, 5), (2, 4, 8), (4, 8, 8), (2, 8, 4)])
def test_round_trip(patch, height, width):
    z = torch.randn(3, 4, height, width, generator=torch.Generator().manual_seed(0))
    tokens = patchify(z, patch)
    assert tokens.shape == (3, height * width // patch**2, 4 * patch**2)
    assert torch.equal(unpatchify(tokens, patch, 4, height), z)


def test_refused_sizes():
    with pytest.raises(ValueError, match="patch 2.*4 x 5"):
        patchify(torch.zeros(1, 1, 4, 5), 2)
    tokens = torch.zeros(1, 6, 16)
    with pytest.raises(ValueError, match="16 numbers.*2 x 2 x 3"):
        unpatchify(tokens, 2, 3, 4)
    with pytest.raises(ValueError, match="height of 5"):
        unpatchify(tokens, 2, 4, 5)
    with pytest.raises(ValueError, match="6 tokens.*4 rows"):
        unpatchify(tokens, 2, 4, 8)


def test_map_puts_token_n_at_its_row_and_column():
    f = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    grid = to_map(f)
    assert grid.shape == (2, 5, 3, 3)
    for n in range(9):
        assert torch.equal(grid[:, :, n // 3, n % 3], f[:, n])


def test_map_agrees_with_patches_of_one_pixel():
    z = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_map(patchify(z, 1)), z)


def test_map_of_a_grid_that_is_not_square():
    with pytest.raises(ValueError, match="8 tokens"):
        to_map(torch.zeros(1, 8, 2))
