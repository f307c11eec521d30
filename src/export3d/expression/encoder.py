"""LeBS: the expression encoder f_e that scales a learned orthonormal basis (Sec. 3.1, Eq. 3; supplement 6.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.errors import ConfigError, check_shape
from export3d.expression.basis import OrthonormalBasis
from export3d.layers import linear


@dataclass(frozen=True, kw_only=True)
class ExpressionConfig:
    """Sizes of LeBS.

    Attributes:
        inputs: coefficients of the expression space (52 for `arkit52`, 64 for `bfm64`).
        hidden: width of the first of the two fully connected layers.
        n: basis vectors, 10 in the paper.
        d: dimension of the expression embedding, 256 in the paper.
        basis: False: no basis; the two layers output beta' itself ("Direct 3DMM" of Table 3).
        frozen: the encoder was pre-trained (CLeBS) and is not trained with the generator.
    """

    inputs: int = 52
    hidden: int = 256
    n: int = 10
    d: int = 256
    basis: bool = True
    frozen: bool = False

    def __post_init__(self) -> None:
        if min(self.inputs, self.hidden, self.n, self.d) < 1 or self.n > self.d:
            raise ConfigError("expression sizes must be positive and n at most d")

    @property
    def latent(self) -> int:
        """Size of lambda: n, or d without a basis."""
        return self.n if self.basis else self.d


class ExpressionEncoder(nn.Module):
    """beta' = f_e(beta) = sum_i lambda_i v_i (Eq. 3), lambda from two linear layers with a leaky ReLU between.

    Inputs are first standardised by the training data's mean and standard deviation (buffers, by default 0 and 1): the
    ranges of ARKit scores differ widely. Two more buffers, `low` and `high` (n,), hold the natural range of each
    direction: the 5th and 95th percentiles of lambda over the training data (zeros until measured). Without a basis the
    output of the two layers lies in R^d and there are no directions.
    """

    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, config: ExpressionConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.inputs))
        self.register_buffer("deviation", torch.ones(config.inputs))
        self.register_buffer("low", torch.zeros(config.n))
        self.register_buffer("high", torch.zeros(config.n))
        self.first = nn.Linear(config.inputs, config.hidden)
        self.second = linear(config.hidden, config.latent)
        nn.init.xavier_uniform_(self.second.weight)
        self.basis = OrthonormalBasis(config.n, config.d) if config.basis else None
        self.requires_grad_(not config.frozen)

    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """Set mean and standard deviation, (E,) each, of the inputs; deviations are at least 0.02."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp_min(0.02))

    def coefficients(self, expression: Tensor) -> Tensor:
        """beta (B, E) to lambda (B, n), the unbounded coefficients of the basis; (B, d) without a basis."""
        check_shape(expression, f"B {self.config.inputs}", "expression")
        with torch.autocast(expression.device.type, enabled=False):
            x = (expression - self.mean) / self.deviation
            coefficients: Tensor = self.second(F.leaky_relu(self.first(x), 0.2))
            return coefficients

    def embed(self, coefficients: Tensor) -> Tensor:
        """lambda (B, n) to beta' (B, d) (Eq. 3); without a basis, the layers' output (B, d) / sqrt(d)."""
        if self.basis is None:
            return coefficients / math.sqrt(self.config.d)  # the scale of LeBS, which EAdaLN expects
        with torch.autocast(coefficients.device.type, enabled=False):
            basis: Tensor = self.basis()
            return coefficients @ basis.to(coefficients.dtype)

    def forward(self, expression: Tensor) -> Tensor:
        """beta (B, E) to beta' (B, d)."""
        return self.embed(self.coefficients(expression))
