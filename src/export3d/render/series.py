"""Exponentials by polynomials, for functions that Numba compiles: loops over them become steps of many numbers.

Numba's cache does not see changes in this file: see `compiled`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from export3d.render.compiled import compiled

FLAGS = ("contract", "nsz", "arcp")
"""Sums keep their order, NaN and infinity their meaning."""
_HALF, _ONE, _TWO, _ZERO = np.float32(0.5), np.float32(1.0), np.float32(2.0), np.float32(0.0)
_LOG2_E = np.float32(np.log2(np.e))


def _polynomial(function: Any, degree: int, ends: tuple[float, float]) -> Any:
    """Coefficients of the Chebyshev interpolation between two ends, lowest power first."""
    found = np.polynomial.Chebyshev.interpolate(function, degree, ends)
    return found.convert(kind=np.polynomial.Polynomial).coef.astype(np.float32)


# without constant terms: exp(0) is exactly 1, and log1p(0) exactly 0
_P1, _P2, _P3, _P4, _P5, _P6 = _polynomial(lambda x: (np.exp2(x) - 1.0) / x, 5, (-0.5, 0.5))
_L1, _L2, _L3, _L4, _L5, _L6, _L7 = _polynomial(lambda x: np.log1p(x) / x, 6, (0.0, 1.0))


def _compiled(function: Any) -> Any:
    return compiled(function, fastmath=set(FLAGS))


@_compiled
def exp(x: Any) -> Any:
    """e^x for x <= 0, relative error below 4e-6 (1e-6 above -10): 2^n times a polynomial of 2^r, r in [-1/2, 1/2]."""
    t = max(x * _LOG2_E, np.float32(-126.0))
    n = np.floor(t + _HALF)
    r = t - n
    p = _ONE + r * (_P1 + r * (_P2 + r * (_P3 + r * (_P4 + r * (_P5 + r * _P6)))))
    return p * np.int32((np.int32(n) + 127) << 23).view(np.float32)


@_compiled
def log1p(x: Any) -> Any:
    """log(1 + x) for x in [0, 1], error below 1e-6."""
    return x * (_L1 + x * (_L2 + x * (_L3 + x * (_L4 + x * (_L5 + x * (_L6 + x * _L7))))))


@_compiled
def softplus(x: Any) -> Any:
    """log(1 + e^x), error below 1e-6."""
    return max(x, _ZERO) + log1p(exp(-abs(x)))


@_compiled
def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    y = exp(-_TWO * abs(x))
    t = (_ONE - y) / (_ONE + y)
    return t if x > _ZERO else -t
