"""Convert state dicts between this package's conventions and those of the published code bases.

In SiT, LayerSync and LightningDiT time runs from noise (t = 0) to data (t = 1) and the velocity is z - eps; REPA,
Self-Transcendence and SRA use this package's direction. The conversion is exact and changes the weights only, so the
rest of the code does not depend on the direction. DiT's weights are unchanged: `backbones/dit.py` computes a velocity
from them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.backbones.layers import FREQUENCIES, MAX_PERIOD

Weights = dict[str, Tensor]
_TIME = "t_embedder.mlp.0.weight"
_NODES = 8  # interpolation nodes between two frequency scales: the error is below 1e-8


@dataclass(frozen=True)
class Family:
    """File format and sampling defaults of a code base."""

    backbone: str
    data_at_one: bool  # time runs from noise to data, and the velocity is z - eps
    learn_sigma: bool | None  # value in its own code; None if both occur
    wrapped: bool  # {"model", "ema", "steps"} instead of a flat state dict
    sampling: Mapping[str, Any]  # its defaults, as far as there are options for them


_SDE = {"sampler": "euler-maruyama", "steps": 250}
# SiT's script has REPA's SDE: its w = sigma is half of our w = 2t. DiT has 250 DDPM steps; we keep their number.
_THREE = {**_SDE, "guidance_channels": 3}
_ODE = {"sampler": "euler", "steps": 249, "shift": 0.3, "guidance_channels": 3}  # 249 intervals of a grid of 250
# Other code bases use the same formats: Dispersive Loss that of SiT, HASTE that of REPA.
FAMILIES = {
    "sit": Family("sit", data_at_one=True, learn_sigma=True, wrapped=False, sampling=_THREE),
    "repa": Family("sit", data_at_one=False, learn_sigma=False, wrapped=True, sampling=_SDE),
    "self-transcendence": Family("sit", data_at_one=False, learn_sigma=False, wrapped=True, sampling=_SDE),
    "sra": Family("sit", data_at_one=False, learn_sigma=False, wrapped=True, sampling=_SDE),
    "layersync": Family("sit", data_at_one=True, learn_sigma=True, wrapped=True, sampling=_THREE),
    "lightningdit": Family("lightningdit", data_at_one=True, learn_sigma=None, wrapped=True, sampling=_ODE),
    "dit": Family("dit", data_at_one=False, learn_sigma=None, wrapped=False, sampling=_THREE),
}

_PARTS = ("weight", "bias")
# Names in diffusers' DiT and in the published files: outside the blocks, in the time embedding, and in a block.
_ENDS = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
_TIME_MLP = {"timestep_embedder.linear_1": "t_embedder.mlp.0", "timestep_embedder.linear_2": "t_embedder.mlp.2"}
_BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}


def turn_time(tensors: Mapping[str, Tensor]) -> Weights:
    """Weights of the same network with t replaced by 1 - t and v by -v; this is its own inverse.

    The time features are [cos tf | sin tf], and cos (1-t)f = cos f cos tf + sin f sin tf, sin (1-t)f = sin f cos tf
    - cos f sin tf: a fixed linear map of the columns of the first time matrix, computed in float64. The second half of
    `learn_sigma` channels, which is never used, is negated as well.
    """
    frequencies = _time_frequencies().to(tensors[_TIME].device)
    cos, sin = frequencies.cos(), frequencies.sin()
    of_cos, of_sin = tensors[_TIME].double().chunk(2, dim=1)
    turned = torch.cat([of_cos * cos + of_sin * sin, of_cos * sin - of_sin * cos], dim=1)
    negated = {f"final_layer.linear.{part}": -tensors[f"final_layer.linear.{part}"] for part in ("weight", "bias")}
    return {**tensors, _TIME: turned.to(tensors[_TIME].dtype), **negated}


def to_published(tensors: Mapping[str, Tensor], family: str) -> Weights:
    """A backbone's weights in the convention of `family`: time direction, velocity and number of output channels.

    Sigma channels that `family` needs and the weights lack are zeros; those that it does not have are dropped.
    """
    kind = FAMILIES[family]
    published = turn_time(tensors) if kind.data_at_one else dict(tensors)
    if kind.learn_sigma is not None:
        _, channels, patch, _ = published["x_embedder.proj.weight"].shape
        wanted = (2 if kind.learn_sigma else 1) * channels
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            rows = rearrange(published[name], "(pixel c) ... -> pixel c ...", pixel=patch**2)
            rows = torch.cat([rows, torch.zeros_like(rows)], dim=1)[:, :wanted]
            published[name] = rearrange(rows, "pixel c ... -> (pixel c) ...").contiguous()
    return published


def to_diffusers(tensors: Mapping[str, Tensor], depth: int, *, velocity: bool) -> Weights:
    """The weights of a SiT or DiT of `depth` blocks with the names of diffusers' `DiTTransformer2DModel`.

    That class spaces its time frequencies as i / 127, not i / 128. For a `velocity` model with t in [0, 1], the first
    time matrix is fitted to them (to 1e-8 of the features); for the 1000 steps of DiT this is impossible.
    """
    if velocity:
        refit = _frequency_interpolation().to(tensors[_TIME].device)
        of_cos, of_sin = tensors[_TIME].double().chunk(2, dim=1)
        time = torch.cat([of_cos @ refit, of_sin @ refit], dim=1)
        tensors = {**tensors, _TIME: time.to(tensors[_TIME].dtype)}
    renamed = {f"{new}.{part}": tensors[f"{old}.{part}"] for new, old in _ENDS.items() for part in _PARTS}
    for block in range(depth):
        old, new = f"blocks.{block}", f"transformer_blocks.{block}"
        table = tensors["y_embedder.embedding_table.weight"].clone()  # every block has its own embedders
        renamed[f"{new}.norm1.emb.class_embedder.embedding_table.weight"] = table
        for part in _PARTS:
            for to, own in _TIME_MLP.items():
                renamed[f"{new}.norm1.emb.{to}.{part}"] = tensors[f"{own}.{part}"].clone()
            renamed |= {f"{new}.{to}.{part}": tensors[f"{old}.{own}.{part}"] for to, own in _BLOCK.items()}
            for name, value in zip("qkv", tensors[f"{old}.attn.qkv.{part}"].chunk(3), strict=True):
                renamed[f"{new}.attn1.to_{name}.{part}"] = value.clone()
    return renamed


def _time_frequencies() -> Float[Tensor, "128"]:
    """The frequencies of `layers.timestep_features` in float64, rounded to float32 as there."""
    steps = torch.arange(FREQUENCIES, dtype=torch.float32)
    return torch.exp(-math.log(MAX_PERIOD) * steps / FREQUENCIES).double()


def _frequency_interpolation() -> Float[Tensor, "128 128"]:
    """M with cos(t f_i) = sum_j M_ij cos(t g_j), and the same for sines, t in [0, 1], f spaced as i/128, g as j/127.

    Lagrange interpolation in log-frequency through the nearest nodes, which enclose f_i.
    """
    positions = torch.arange(FREQUENCIES, dtype=torch.float64) * (FREQUENCIES - 1) / FREQUENCIES
    first = (positions.long() - _NODES // 2 + 1).clamp(0, FREQUENCIES - _NODES)
    matrix = torch.zeros(FREQUENCIES, FREQUENCIES, dtype=torch.float64)
    for row, (position, start) in enumerate(zip(positions.tolist(), first.tolist(), strict=True)):
        nodes = range(start, start + _NODES)
        for node in nodes:
            matrix[row, node] = math.prod((position - other) / (node - other) for other in nodes if other != node)
    return matrix
