import numpy as np
import pytest

from export3d.errors import ConfigError, ShapeError
from export3d.motion.arkit import ARKIT52, ARKIT52_MIRRORED, with_scores
from export3d.motion.motion import SPACES


def test_there_are_52_different_arkit_scores() -> None:
    assert len(ARKIT52) == len(set(ARKIT52)) == SPACES["arkit52"] == 52
    assert {"jawOpen", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookInLeft", "tongueOut"} <= set(ARKIT52)
    assert "_neutral" not in ARKIT52


def test_mirroring_scores_swaps_left_and_right_and_is_its_own_inverse() -> None:
    for source, name in zip(ARKIT52_MIRRORED, ARKIT52):
        other = ARKIT52[source]
        assert ("Left" in name) == ("Right" in other)
        assert name.replace("Left", "").replace("Right", "") == other.replace("Left", "").replace("Right", "")
    assert [ARKIT52_MIRRORED[k] for k in ARKIT52_MIRRORED] == list(range(52))


@pytest.mark.parametrize("name", ARKIT52)
def test_every_score_can_be_set_alone(name: str, rng: np.random.Generator) -> None:
    before = rng.random(52).astype(np.float32)
    after = with_scores(before, {name.upper(): 0.25})
    assert after.dtype == np.float32
    expected = before.copy()
    expected[ARKIT52.index(name)] = 0.25
    np.testing.assert_array_equal(after, expected)


def test_a_pair_sets_both_sides_and_the_later_of_two_counts() -> None:
    face = with_scores([0] * 52, {"eyeBlink": 1, "eyeBlinkLeft": 0.5})
    assert face[ARKIT52.index("eyeBlinkLeft")] == 0.5
    assert face[ARKIT52.index("eyeBlinkRight")] == 1.0
    assert np.count_nonzero(face) == 2


def test_scores_are_set_in_every_frame_and_the_argument_stays_as_it_is(rng: np.random.Generator) -> None:
    before = rng.random((3, 4, 52))
    copy = before.copy()
    assert (with_scores(before, {"mouthClose": 0})[..., ARKIT52.index("mouthClose")] == 0).all()
    np.testing.assert_array_equal(before, copy)


@pytest.mark.parametrize(
    ("name", "nearest"), [("jawOpne", "jawOpen"), ("smileLeft", "mouthSmileLeft"), ("jaw", "jawOpen"), ("", "")]
)
def test_an_unknown_score_is_refused_with_the_nearest_name(name: str, nearest: str) -> None:
    """`jaw` is none: jawLeft and jawRight are opposites, not two sides."""
    with pytest.raises(ConfigError, match=f"{name}.*{nearest}"):
        with_scores(np.zeros(52), {name: 0.5})


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_score_outside_0_to_1_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="jawOpen must be between 0 and 1"):
        with_scores(np.zeros(52), {"jawOpen": value})


def test_scores_cannot_be_set_in_another_space() -> None:
    with pytest.raises(ShapeError, match="52"):
        with_scores(np.zeros(64), {"jawOpen": 0.5})
