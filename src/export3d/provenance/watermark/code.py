"""Reed-Solomon (8, 4) over GF(256): 32 payload bits in eight symbols, any four of which determine the others.

I. S. Reed, G. Solomon, "Polynomial Codes over Certain Finite Fields", J. SIAM 8 (1960). The payload's four bytes are
the values at x = 0..3 of a polynomial of degree below four; symbols 4..7 are its values at x = 4..7. Two codewords
differ in at least five symbols.

The decoder takes a score for each value of each symbol. It is ordered-statistics decoding (M. Fossorier, S. Lin, IEEE
Trans. Information Theory 41, 1995): the likeliest values of every four of the most reliable symbols are completed to
codewords, and the codeword with the highest sum of scores wins.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export3d.errors import ConfigError

SYMBOLS = 8
VALUES = 256
_PAYLOAD_SYMBOLS = 4
_RELIABLE_SYMBOLS = 6
_LIKELIEST_VALUES = 3
_FIELD_POLYNOMIAL = 0x11D


@cache
def _products() -> NDArray[np.uint8]:
    """(256, 256) multiplication table of GF(256)."""
    powers, logarithm, element = np.zeros(510, np.uint8), np.zeros(VALUES, np.int64), 1
    for exponent in range(255):
        powers[exponent] = powers[exponent + 255] = element
        logarithm[element] = exponent
        element = element << 1 ^ (_FIELD_POLYNOMIAL if element & 0x80 else 0)
    table: NDArray[np.uint8] = powers[logarithm[:, None] + logarithm[None, :]]
    table[0] = table[:, 0] = 0
    return table


def _inverse(element: int) -> int:
    return int(np.flatnonzero(_products()[element] == 1)[0])


@cache
def _interpolation(points: tuple[int, ...]) -> NDArray[np.uint8]:
    """(4, 8) Lagrange coefficients: the eight symbols as combinations of the symbols at four points."""
    table = _products()
    coefficients = np.zeros((_PAYLOAD_SYMBOLS, SYMBOLS), np.uint8)
    for row, point in enumerate(points):
        for x in range(SYMBOLS):
            value = 1
            for other in points:
                if other != point:
                    value = int(table[table[value, x ^ other], _inverse(point ^ other)])
            coefficients[row, x] = value
    return coefficients


def _codewords(points: tuple[int, ...], symbols: NDArray[Any]) -> NDArray[np.uint8]:
    """(N, 8) codewords with the given (N, 4) symbols at four points."""
    terms = _products()[symbols[:, :, None], _interpolation(points)[None]]
    return np.asarray(np.bitwise_xor.reduce(terms, axis=1), np.uint8)


def encode(payload: int) -> NDArray[np.uint8]:
    """The codeword (8,) of a payload of 32 bits; raises ConfigError outside 0 <= payload < 2**32.

    >>> encode(0x01020304).tolist()[:4]
    [1, 2, 3, 4]
    """
    if isinstance(payload, bool) or not isinstance(payload, int | np.integer) or not 0 <= payload < 1 << 32:
        raise ConfigError(
            f"the watermark's payload is {payload!r}; it must be an integer from 0 to 4294967295 (32 bits)"
        )
    symbols = np.frombuffer(int(payload).to_bytes(_PAYLOAD_SYMBOLS, "big"), np.uint8)
    return np.asarray(_codewords((0, 1, 2, 3), symbols[None])[0])


def decode(scores: NDArray[Any]) -> tuple[int, float]:
    """The payload whose codeword has the highest sum of scores, and that sum.

    Args:
        scores: (8, 256), one for each value of each symbol, comparable between symbols.
    """
    likeliest = np.argsort(-scores, axis=1)[:, :_LIKELIEST_VALUES]
    ordered = np.take_along_axis(scores, likeliest, axis=1)
    reliable = np.sort(np.argsort(ordered[:, 1] - ordered[:, 0])[:_RELIABLE_SYMBOLS])
    ranks = np.array(list(product(range(_LIKELIEST_VALUES), repeat=_PAYLOAD_SYMBOLS)))
    candidates = []
    for points in combinations(reliable.tolist(), _PAYLOAD_SYMBOLS):
        candidates.append(_codewords(points, likeliest[points, ranks]))
    words = np.concatenate(candidates)
    sums = scores[np.arange(SYMBOLS), words].sum(axis=1)
    best = int(sums.argmax())
    return int.from_bytes(words[best, :_PAYLOAD_SYMBOLS].tobytes(), "big"), float(sums[best])
