"""The two-way normalised cut of a similarity graph (Shi and Malik 2000), on the device and without a wait."""

from __future__ import annotations

import torch
from torch import Tensor

_SQUARINGS = 12  # as 2^12 = 4096 steps of the power iteration


def similarities(features: Tensor, valid: Tensor | None = None) -> Tensor:
    """Features (B, N, D) -> (B, N, N) float32: cosines, 0 where negative, or where a token is not ``valid`` (B, N)."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    if valid is not None:
        unit = torch.where(valid[..., None], unit, 0.0)
    return (unit @ unit.transpose(1, 2)).clamp(min=0)


def fiedler_vector(weights: Tensor) -> Tensor:
    """The second eigenvector y (B, N) of (D - W) y = lambda D y for weights W (B, N, N) >= 0 and their row sums D.

    Its largest entry by magnitude is positive; rows and columns of zeros get 0. A library's eigenvectors would make the
    host wait, and have any sign: here the matrix (I + D^-1/2 W D^-1/2) / 2 without its first eigenvector, which is
    D^1/2 1, is squared twelve times, and the column of its largest diagonal entry is the second one. Where eigenvalues
    are closer to each other than about 1e-3 it is a mixture of their vectors, which cuts nearly as well.
    """
    degree = weights.sum(-1)
    present = degree > 0
    root = torch.where(present, degree, 1.0).rsqrt() * present
    first = torch.nn.functional.normalize(degree.sqrt(), dim=-1)
    matrix = root[:, :, None] * weights * root[:, None, :]
    matrix = 0.5 * (matrix + torch.diag_embed(present.to(matrix.dtype))) - first[:, :, None] * first[:, None, :]
    for _ in range(_SQUARINGS):
        matrix = matrix / matrix.diagonal(dim1=1, dim2=2).amax(1).clamp(min=1e-30)[:, None, None]
        matrix = matrix @ matrix
    place = matrix.diagonal(dim1=1, dim2=2).argmax(1)
    vector = matrix.gather(2, place[:, None, None].expand(-1, matrix.shape[1], 1)).squeeze(2) * root
    return vector * vector.gather(1, vector.abs().argmax(1, keepdim=True)).sign()


def normalised_cut(features: Tensor, valid: Tensor | None = None) -> Tensor:
    """Features (B, N, D) -> (B, N) bool: the side of the cut on which the Fiedler vector is positive."""
    return fiedler_vector(similarities(features, valid)) > 0
