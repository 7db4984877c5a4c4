"""Cosine similarity between chosen tokens and all tokens."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Float64

Token = tuple[int, int]  # index of the image, number of the token in it, row by row

# How the similarities to several chosen tokens become one number.
SEVERAL: dict[str, Callable[..., np.ndarray]] = {"mean": np.mean, "maximum": np.max}


def token_similarity(
    features: Float[np.ndarray, "n m d"], tokens: Sequence[Token], several: str = "mean"
) -> Float64[np.ndarray, "n m"]:
    """Cosine similarity, -1 to 1, of every token to the chosen ones: the mean or maximum over these.

    Features are not centred. A token of length zero has similarity 0 to all.
    """
    rows = features.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    chosen = np.stack([unit[image, token] for image, token in tokens])
    return SEVERAL[several](np.clip(unit @ chosen.T, -1, 1), axis=-1)
