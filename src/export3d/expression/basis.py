"""The learned orthonormal basis V of the expression space (Sec. 3.1, Eq. 2).

Letters: n basis vectors, d dimensions of the expression embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export3d.errors import ConfigError


class OrthonormalBasis(nn.Module):
    """V = {v_1 … v_n} in R^d with <v_i, v_j> = delta_ij (Eq. 2), parametrised by a free (d, n) matrix.

    V is the Q of the QR decomposition in float32 (also under autocast), with signs chosen so that the diagonal of R is
    positive. This makes the decomposition unique: the same weights always give the same directions.

    Args:
        n: number of basis vectors (10 in the paper).
        d: dimension of the embedding (256 in the paper); at least n.
    """

    def __init__(self, n: int, d: int) -> None:
        super().__init__()
        if not 0 < n <= d:
            raise ConfigError(f"a basis of {n} orthonormal vectors does not fit in {d} dimensions; choose n <= d")
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(d, n))[0])

    def forward(self) -> Tensor:
        """(n, d) float32, rows orthonormal."""
        with torch.autocast(self.weight.device.type, enabled=False):
            q, r = torch.linalg.qr(self.weight.float())
            sign = torch.where(torch.diagonal(r) < 0, -1.0, 1.0)
            basis: Tensor = (q * sign).T
            return basis
