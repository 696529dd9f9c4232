"""How sure to be of a text: probabilities of tokens turned into the share of them that is right. N texts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 10


@dataclass(frozen=True)
class Calibration:
    """sigmoid(slope * x + shift) of x, the mean log-probability of a text's tokens (Platt, 1999)."""

    slope: float
    shift: float

    def __call__(self, mean: float) -> float:
        return float(torch.sigmoid(torch.tensor(self.slope * mean + self.shift, dtype=torch.float64)))


def calibrated(means: Tensor, right: Tensor) -> Calibration:
    """The likeliest calibration for texts of mean log-probabilities (N,), of which shares `right` (N,) were right.

    By Newton's method. More probable texts are never made less sure.
    """
    x = torch.stack([means.double(), torch.ones(len(means), dtype=torch.float64)], dim=1)
    found = torch.zeros(2, dtype=torch.float64)
    for _ in range(50):
        told = torch.sigmoid(x @ found)
        slope = x.T @ (right.double() - told) - 1e-3 * found
        curve = (x * (told * (1 - told))[:, None]).T @ x + 1e-3 * torch.eye(2, dtype=torch.float64)
        found = found + torch.linalg.solve(curve, slope).clamp(-2, 2)
    if found[0] <= 0:  # it says nothing: the mean share is the best guess
        share = float(right.double().mean().clamp(1e-3, 1 - 1e-3))
        return Calibration(0.0, math.log(share / (1 - share)))
    return Calibration(*found.tolist())


def calibration_error(sure: Tensor, right: Tensor) -> float:
    """The expected calibration error (ECE) of N texts: how far being sure (N,) is from being right (N,), on average
    over ten bins of equal width (Guo et al., 2017)."""
    bins = (sure.double() * BINS).long().clamp(0, BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, (sure - right).double())
    return float(gaps.abs().sum() / len(sure))
