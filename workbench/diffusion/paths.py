"""Paths between data (t = 0) and noise (t = 1), and conversions between prediction targets.

A path is x_t = a(t) z + b(t) eps with velocity v = a'(t) z + b'(t) eps. As a 2 x 2 linear system in (z, eps), these two
equations give every conversion below. Its determinant D = a b' - a' b is 1 on the linear path and pi/2 on the cosine
path, so (x_t, v) always determines (z, eps), and only the inverse conversions have singular times.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Path(ABC):
    """The coefficients of x_t = a(t) z + b(t) eps and their derivatives; t has any shape and float dtype."""

    name: str

    @abstractmethod
    def a(self, t: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Coefficient of the data z: 1 at t = 0, 0 at t = 1."""

    @abstractmethod
    def b(self, t: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Coefficient of the noise eps: 0 at t = 0, 1 at t = 1."""

    @abstractmethod
    def da(self, t: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Derivative of a."""

    @abstractmethod
    def db(self, t: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Derivative of b."""

    @abstractmethod
    def time_of(self, log_ratio: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """The time t at which log(b/a), noise over data, is `log_ratio`; increasing, 1/2 at 0."""


class _Linear(Path):
    def a(self, t: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return 1 - t

    def b(self, t: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return t

    def da(self, t: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return -torch.ones_like(t)

    def db(self, t: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return torch.ones_like(t)

    def time_of(self, log_ratio: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return torch.sigmoid(log_ratio)  # t / (1 - t) = e^n


class _Cosine(Path):
    def a(self, t: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return torch.cos(math.pi / 2 * t)

    def b(self, t: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return torch.sin(math.pi / 2 * t)

    def da(self, t: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return -math.pi / 2 * torch.sin(math.pi / 2 * t)

    def db(self, t: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return math.pi / 2 * torch.cos(math.pi / 2 * t)

    def time_of(self, log_ratio: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        return 2 / math.pi * torch.atan(log_ratio.exp())  # tan(pi t / 2) = e^n


LINEAR: Path = _Linear("linear")
COSINE: Path = _Cosine("cosine")
_PATHS = {path.name: path for path in (LINEAR, COSINE)}


def get_path(name: str) -> Path:
    """Path by name: "linear" (the paper's) or "cosine" (the other path of the REPA family).

    Raises ValueError for any other name.
    """
    if name not in _PATHS:
        raise ValueError(f"unknown path {name!r}; allowed: {', '.join(_PATHS)}")
    return _PATHS[name]


@dataclass(frozen=True)
class Interpolation:
    """A point on a path and its velocity, the target of the denoising loss."""

    x_t: Float[Tensor, "b *axes"]
    v: Float[Tensor, "b *axes"]


@dataclass(frozen=True)
class _Coefficients:
    """a, b, a', b' at the times of a batch, shaped to broadcast with it."""

    a: Tensor
    b: Tensor
    da: Tensor
    db: Tensor

    @property
    def determinant(self) -> Tensor:
        return self.a * self.db - self.da * self.b


def _coefficients(path: Path, t: Tensor, like: Tensor) -> _Coefficients:
    t = t.reshape(t.shape + (1,) * (like.ndim - 1))
    return _Coefficients(path.a(t), path.b(t), path.da(t), path.db(t))


def interpolate(
    path: Path, z: Float[Tensor, "b *axes"], eps: Float[Tensor, "b *axes"], t: Float[Tensor, "b"]
) -> Interpolation:
    """The noisy point x_t = a z + b eps and its velocity v = a' z + b' eps (linear: v = eps - z).

    z and eps have shape "b ...", t has one time in [0, 1] per sample. No singular times.
    """
    k = _coefficients(path, t, z)
    return Interpolation(x_t=k.a * z + k.b * eps, v=k.da * z + k.db * eps)


def velocity_to_eps(
    path: Path, x_t: Float[Tensor, "b *axes"], t: Float[Tensor, "b"], v: Float[Tensor, "b *axes"]
) -> Float[Tensor, "b *axes"]:
    """The noise eps = (a v - a' x_t) / D that x_t and its velocity imply (linear: x_t + (1-t) v).

    Singular nowhere in [0, 1].
    """
    k = _coefficients(path, t, x_t)
    return (k.a * v - k.da * x_t) / k.determinant


def velocity_to_z(
    path: Path, x_t: Float[Tensor, "b *axes"], t: Float[Tensor, "b"], v: Float[Tensor, "b *axes"]
) -> Float[Tensor, "b *axes"]:
    """The clean data z = (b' x_t - b v) / D that x_t and its velocity imply (linear: x_t - t v).

    Singular nowhere in [0, 1].
    """
    k = _coefficients(path, t, x_t)
    return (k.db * x_t - k.b * v) / k.determinant


def velocity_to_score(
    path: Path, x_t: Float[Tensor, "b *axes"], t: Float[Tensor, "b"], v: Float[Tensor, "b *axes"]
) -> Float[Tensor, "b *axes"]:
    """The score grad log p_t(x_t) = -eps / b (linear: -(x_t + (1-t) v) / t).

    It is the score when v is the conditional mean of the velocity given x_t. Singular at t = 0, where b = 0.
    """
    k = _coefficients(path, t, x_t)
    return (k.da * x_t - k.a * v) / (k.b * k.determinant)


def eps_to_velocity(
    path: Path, x_t: Float[Tensor, "b *axes"], t: Float[Tensor, "b"], value: Float[Tensor, "b *axes"]
) -> Float[Tensor, "b *axes"]:
    """The velocity (a' x_t + D eps) / a of a noise prediction `value`: inverse of `velocity_to_eps`.

    Singular at t = 1, where a = 0 and x_t says nothing about the data.
    """
    k = _coefficients(path, t, x_t)
    return (k.da * x_t + k.determinant * value) / k.a


def z_to_velocity(
    path: Path, x_t: Float[Tensor, "b *axes"], t: Float[Tensor, "b"], value: Float[Tensor, "b *axes"]
) -> Float[Tensor, "b *axes"]:
    """The velocity (b' x_t - D z) / b of a data prediction `value`: inverse of `velocity_to_z`.

    Singular at t = 0, where b = 0 and x_t says nothing about the noise.
    """
    k = _coefficients(path, t, x_t)
    return (k.db * x_t - k.determinant * value) / k.b


def score_to_velocity(
    path: Path, x_t: Float[Tensor, "b *axes"], t: Float[Tensor, "b"], value: Float[Tensor, "b *axes"]
) -> Float[Tensor, "b *axes"]:
    """The velocity (a' x_t - D b s) / a of a score s given as `value`: inverse of `velocity_to_score`.

    Singular at t = 1, where a = 0. At t = 0 it is finite but does not depend on `value`, so not invertible there.
    """
    k = _coefficients(path, t, x_t)
    return (k.da * x_t - k.determinant * k.b * value) / k.a
