"""The learned orthonormal basis V of the expression space (Sec. 3.1, Eq. 2).

Letters: n basis vectors, d dimensions of the expression embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from export3d.errors import ConfigError


class OrthonormalBasis(nn.Module):
    """V = {v_1 … v_n} in R^d with <v_i, v_j> = delta_ij (Eq. 2), parametrised by a free (d, n) matrix.

    V is the Q of the QR decomposition in float32 (also under autocast), with signs chosen so that the diagonal of R is
    positive. This makes the decomposition unique: the same weights always give the same directions. The V of a frozen
    weight is kept until the weight changes or moves; do not modify it.

    Args:
        n: number of basis vectors (10 in the paper).
        d: dimension of the embedding (256 in the paper); at least n.
    """

    def __init__(self, n: int, d: int) -> None:
        super().__init__()
        if not 0 < n <= d:
            raise ConfigError(f"a basis of {n} orthonormal vectors does not fit in {d} dimensions; choose n <= d")
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(d, n))[0])
        self._kept: tuple[tuple[int, int], Tensor] | None = None

    def forward(self) -> Tensor:
        """(n, d) float32, rows orthonormal."""
        weight = self.weight
        if weight.requires_grad or weight.is_inference() or torch.compiler.is_compiling():
            return self._decomposed()
        key = (weight.data_ptr(), weight._version)
        if self._kept is None or self._kept[0] != key:
            with torch.inference_mode(False), torch.no_grad():  # training needs a normal tensor
                self._kept = key, self._decomposed()
        return self._kept[1]

    def _decomposed(self) -> Tensor:
        with torch.autocast(self.weight.device.type, enabled=False):
            q, r = torch.linalg.qr(self.weight.float())
            sign = torch.where(torch.diagonal(r) < 0, -1.0, 1.0)
            basis: Tensor = (q * sign).T
            return basis

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OrthonormalBasis:
        """What `to`, `half` and the like call."""
        self._kept = None
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]
