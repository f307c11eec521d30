"""Exponentials by their series, for functions that Numba compiles: loops over them become steps of many numbers.

Numba's cache does not see changes in this file: see `compiled`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from export3d.render.compiled import compiled

FLAGS = ("contract", "nsz", "arcp")
"""Sums keep their order, NaN and infinity their meaning."""
_HALF, _ONE, _TWO, _ZERO = np.float32(0.5), np.float32(1.0), np.float32(2.0), np.float32(0.0)
_LOG2_E, _LN_2 = np.float32(np.log2(np.e)), np.float32(np.log(2.0))
_E2, _E3, _E4, _E5, _E6 = (1 / np.cumprod(np.arange(1.0, 7.0))).astype(np.float32)[1:]
"""1 / n!, of the exponential's series."""
_A3, _A5, _A7, _A9, _A11 = (1 / np.arange(3.0, 12.0, 2.0)).astype(np.float32)
"""1 / n, of the series of the inverse hyperbolic tangent."""


def _compiled(function: Any) -> Any:
    return compiled(function, fastmath=set(FLAGS))


@_compiled
def exp(x: Any) -> Any:
    """e^x for x <= 0, relative error below 1e-6: 2^n times a polynomial on [-ln(2) / 2, ln(2) / 2]."""
    t = max(x * _LOG2_E, np.float32(-126.0))
    n = np.floor(t + _HALF)
    r = (t - n) * _LN_2
    p = _ONE + r * (_ONE + r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * _E6)))))
    return p * np.int32((np.int32(n) + 127) << 23).view(np.float32)


@_compiled
def twice_atanh(s: Any) -> Any:
    """2 atanh(s) for abs(s) <= 1/3, error below 1e-6: the logarithm of (1 + s) / (1 - s)."""
    q = s * s
    return _TWO * s * (_ONE + q * (_A3 + q * (_A5 + q * (_A7 + q * (_A9 + q * _A11)))))


@_compiled
def softplus(x: Any) -> Any:
    """log(1 + e^x), error below 1e-6: max(x, 0) + 2 atanh(s) with s = y / (2 + y), y = e^-|x|."""
    y = exp(-abs(x))
    return max(x, _ZERO) + twice_atanh(y / (_TWO + y))


@_compiled
def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    y = exp(-_TWO * abs(x))
    t = (_ONE - y) / (_ONE + y)
    return t if x > _ZERO else -t
