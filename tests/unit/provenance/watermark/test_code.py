"""The code corrects what four reliable symbols of eight determine."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from export3d.errors import ConfigError
from export3d.provenance.watermark.code import SYMBOLS, VALUES, decode, encode


def scores_of(payload: int) -> np.ndarray:
    scores = np.zeros((SYMBOLS, VALUES))
    scores[np.arange(SYMBOLS), encode(payload)] = 5.0
    return scores


@pytest.mark.parametrize("payload", [0, 1, 0xDEADBEEF, 2**32 - 1])
def test_decoding_inverts_encoding(payload):
    assert decode(scores_of(payload)) == (payload, 5.0 * SYMBOLS)


def test_codewords_differ_in_at_least_five_symbols():
    words = [encode(payload) for payload in (*range(40), *(byte << 24 for byte in range(1, 40)))]
    assert min(int((one != other).sum()) for one, other in combinations(words, 2)) == 5


def test_two_wrong_symbols_are_corrected(rng):
    for lost in combinations(range(SYMBOLS), 2):
        scores = scores_of(0x12345678) + 0.5 * rng.standard_normal((SYMBOLS, VALUES))
        scores[list(lost)] = rng.standard_normal((2, VALUES))
        scores[list(lost), [7, 9]] = 5.0
        assert decode(scores)[0] == 0x12345678


@pytest.mark.parametrize("payload", [-1, 2**32, 1.5, "7", None, True])
def test_a_payload_outside_32_bits_is_refused(payload):
    with pytest.raises(ConfigError, match="from 0 to 4294967295"):
        encode(payload)
