"""animate/rest.py: a portrait caught in the middle of a word or a blink."""

from __future__ import annotations

import numpy as np
import pytest

from export3d import camera
from export3d.animate.drive import driving_motion, rebase
from export3d.animate.rest import around, at_rest, changed, looking_ahead, moving
from export3d.motion.arkit import columns_of, with_scores

LOOKS = [column for name in ("eyeLookIn", "eyeLookOut") for column in columns_of(name)]


def scored(**scores: float) -> np.ndarray:
    return with_scores(np.full(52, 0.05), scores)


def test_a_posed_portrait_is_at_rest_as_it_is() -> None:
    """The scores of the bundled portrait, which smiles with bared teeth."""
    posed = scored(jawOpen=0.01, mouthSmile=0.9, mouthUpperUp=0.47, mouthLowerDown=0.14, eyeBlink=0.2, mouthPucker=0.5)
    np.testing.assert_array_equal(at_rest(posed), posed)


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [("jawOpen", 0.9, 0.01), ("mouthFunnel", 0.6, 0.0), ("mouthLowerDown", 0.86, 0.0), ("eyeBlink", 0.9, 0.15)],
)
def test_what_is_far_from_rest_gets_its_usual_value(name: str, value: float, most: float) -> None:
    caught = scored(mouthSmile=0.8, **{name: value})
    rest = at_rest(caught)
    np.testing.assert_allclose(rest[columns_of(name)], most, atol=1e-9)
    others = np.setdiff1d(np.arange(52), columns_of(name))
    np.testing.assert_array_equal(rest[others], caught[others])


def test_one_eye_that_winks_opens_alone() -> None:
    rest = at_rest(scored(eyeBlinkLeft=0.9, eyeBlinkRight=0.3))
    np.testing.assert_allclose(rest[columns_of("eyeBlink")], [0.15, 0.3])


def test_an_upper_lip_raised_without_a_smile_comes_down() -> None:
    assert at_rest(scored(mouthUpperUp=0.6))[columns_of("mouthUpperUp")].max() == 0.0
    assert at_rest(scored(mouthUpperUp=0.6, mouthSmile=0.7))[columns_of("mouthUpperUp")].min() == 0.6


@pytest.mark.parametrize("name", ["jawOpen", "mouthLowerDown", "mouthUpperUp"])
def test_parted_lips_close_unless_they_smile(name: str) -> None:
    """Portraits caught in speech: their lips would never meet."""
    serious, smiling = (at_rest(scored(mouthSmile=smile, **{name: 0.1})) for smile in (0.1, 0.6))
    assert serious[columns_of(name)].max() < 0.02
    np.testing.assert_array_equal(smiling[columns_of(name)], 0.1)


@pytest.mark.parametrize("name", ["jawOpen", "mouthSmile"])
def test_rest_does_not_jump_with_the_score(name: str) -> None:
    values = np.linspace(0.0, 1.0, 501)
    rest = np.stack([at_rest(scored(**{"jawOpen": 0.1, name: value})) for value in values])
    assert np.abs(np.diff(rest, axis=0)).max() < 0.006


def test_an_open_mouth_closes_while_it_speaks() -> None:
    """Without an estimate of rest jawOpen of the result never falls below 0.51."""
    speech, own = driving_motion("speech"), camera.Camera.look_at().label
    moved = rebase(speech, own, scored(jawOpen=0.6)).scores("jawOpen")
    closed = rebase(speech, own, scored(jawOpen=0.01)).scores("jawOpen")
    assert moved.min() < 0.05
    np.testing.assert_allclose(moved, closed, atol=1e-6)


def test_a_smile_gives_way_to_a_wide_jaw_and_to_nothing_else() -> None:
    own = scored(mouthSmile=0.8)
    moved = np.stack([scored(mouthSmile=0.8, jawOpen=jaw, mouthPucker=0.9) for jaw in (0.0, 0.45, 0.65, 0.85, 1.0)])
    found = changed(own, moved, own)
    np.testing.assert_allclose(found[:, columns_of("mouthSmile")[0]], [0.8, 0.8, 0.4, 0.0, 0.0], atol=1e-9)
    others = np.setdiff1d(np.arange(52), columns_of("mouthSmile"))
    np.testing.assert_allclose(found[:, others], moved[:, others], atol=1e-12)


def test_the_smile_of_the_driver_is_kept_while_the_jaw_is_wide() -> None:
    own, moved = scored(mouthSmile=0.8), scored(mouthSmile=0.8 + 0.15, jawOpen=0.9)
    np.testing.assert_allclose(changed(own, moved, own)[columns_of("mouthSmile")], 0.15)


def test_a_look_goes_on_to_the_other_side_where_one_score_ends() -> None:
    """The portrait looks 0.2 to one side and the driver moves by 0.5 to the other."""
    own = scored(eyeLookInLeft=0.2, eyeLookOutLeft=0.0, jawLeft=0.0, jawRight=0.1)
    change = np.zeros((2, 52))
    change[0, columns_of("eyeLookInLeft")] = -0.5
    change[1, columns_of("jawRight")] = -0.3
    found = changed(own, change, np.zeros(52))
    pairs = [columns_of(name)[0] for name in ("eyeLookInLeft", "eyeLookOutLeft", "jawRight", "jawLeft")]
    np.testing.assert_allclose(found[0, pairs], [0.0, 0.3, 0.1, 0.0], atol=1e-12)
    np.testing.assert_allclose(found[1, pairs], [0.2, 0.0, 0.0, 0.2], atol=1e-12)


def test_what_has_no_opposite_ends_at_its_limits() -> None:
    change = np.where(np.arange(52) % 2, 2.0, -2.0)
    found = changed(scored(), change, np.zeros(52))
    assert found.min() == 0.0
    assert found.max() == 1.0


def test_an_eye_winks_only_if_it_closes_much_farther_than_the_other() -> None:
    """Trackers see one eye of a turned head a little more closed. In a portrait that squints it would shut."""
    own, lids = scored(eyeBlinkLeft=0.2, eyeBlinkRight=0.3), columns_of("eyeBlink")
    driving = np.stack([scored(eyeBlinkLeft=0.1, eyeBlinkRight=right) for right in (0.1, 0.22, 0.6, 0.9)])
    found = changed(own, driving, scored())[:, lids]
    np.testing.assert_allclose(found, [[0.25, 0.35], [0.31, 0.41], [0.28125, 0.81875], [0.25, 1.0]], atol=1e-9)


@pytest.mark.parametrize(
    ("usual", "rest", "wanted"),
    [
        (0.1, -0.6, 0.1),  # the frame that counts as rest looks aside
        (-0.6, 0.1, 0.1),  # a reader, who looks up once in a while
        (0.3, 0.3, 0.3),
    ],
)
def test_eyes_at_rest_look_as_usual_if_that_is_straighter_ahead(usual: float, rest: float, wanted: float) -> None:
    """What both opposite scores share stays."""

    def looking(aside: float) -> np.ndarray:
        both = {"eyeLookInLeft": aside, "eyeLookOutRight": aside, "eyeLookOutLeft": -aside, "eyeLookInRight": -aside}
        return scored(**{name: 0.05 + max(value, 0.0) for name, value in both.items()})

    seen = np.stack([looking(usual)] * 6 + [looking(rest)] * 4)
    found = looking_ahead(looking(rest)[None], seen)[0]
    for one, other in (("eyeLookInLeft", "eyeLookOutLeft"), ("eyeLookOutRight", "eyeLookInRight")):
        pair = found[[columns_of(one)[0], columns_of(other)[0]]]
        assert pair[0] - pair[1] == pytest.approx(wanted)
        assert pair.sum() == pytest.approx(0.1 + abs(rest))
    assert np.array_equal(np.delete(found, LOOKS), np.delete(scored(), LOOKS))


def test_while_the_mouth_moves_a_smile_is_smaller_and_lips_are_the_drivers() -> None:
    own = scored(jawOpen=0.11, mouthSmile=0.8, mouthUpperUp=0.4, mouthShrugLower=0.0, browInnerUp=0.3)
    driving = scored(jawOpen=0.3, mouthUpperUp=0.0, mouthShrugLower=0.2, browInnerUp=0.5)
    rest = scored(jawOpen=0.3, mouthUpperUp=0.0, mouthShrugLower=0.4, browInnerUp=0.4)
    found = changed(own, np.stack([driving] * 3), rest, np.array([0.0, 0.5, 1.0]))
    for name, values in {
        "jawOpen": (0.11, 0.06, 0.01),
        "mouthUpperUp": (0.4, 0.2, 0.0),
        "mouthShrugLower": (0.0, 0.0, 0.2),
        "mouthSmile": (0.8, 0.64, 0.48),
        "browInnerUp": (0.4, 0.4, 0.4),
    }.items():
        np.testing.assert_allclose(found[:, columns_of(name)].mean(axis=1), values, atol=1e-9)


def test_lips_that_speak_are_the_same_whatever_the_portrait_holds_them_at() -> None:
    """A pressed or shrugged lip of the portrait neither keeps its mouth shut nor takes anything from what is said."""
    speech, own = driving_motion("speech"), camera.Camera.look_at().label
    calm, pressed = (rebase(speech, own, scored(mouthPress=press, mouthShrugLower=press)) for press in (0.0, 0.5))
    for name in ("mouthPress", "mouthShrugLower", "mouthPucker"):
        said = [motion.expression[:, columns_of(name)] for motion in (calm, pressed, speech)]
        np.testing.assert_allclose(said[:2], [said[2]] * 2, atol=1e-6)


def test_speech_and_puckers_move_a_mouth_and_smiles_do_not() -> None:
    still = scored(jawOpen=0.02)
    moved = [scored(jawOpen=0.2), scored(jawOpen=0.02, mouthPucker=0.6), scored(jawOpen=0.02, mouthSmile=1.0)]
    assert moving(np.stack(moved) - still).tolist() == [1.0, 1.0, 0.0]
    assert 0.0 < moving(scored(jawOpen=0.1) - still) < 1.0


def test_the_moments_before_and_after_count_too_and_nothing_jumps() -> None:
    fps, moves = 25.0, np.zeros(201)
    moves[100] = 1.0
    found = around(moves, fps)
    assert found[[40, 160]].tolist() == [0.0, 0.0]
    assert (found[70:131] == 1.0).all()
    assert np.abs(np.diff(found)).max() < 0.07
    np.testing.assert_allclose(found, found[::-1], atol=1e-12)  # the same before and after
    assert around(np.ones(1), fps).shape == (1,)


def test_a_smile_with_bared_teeth_closes_its_lips_in_speech() -> None:
    speech, own = driving_motion("speech"), camera.Camera.look_at().label
    smile = scored(jawOpen=0.05, mouthSmile=0.6, mouthUpperUp=0.4, mouthLowerDown=0.1)
    moved = rebase(speech, own, smile)
    shut = speech.scores("mouthUpperUp") < 0.01
    assert np.median(moved.scores("mouthUpperUp")[shut]) < 0.1
    assert moved.scores("mouthSmile").min() > 0.3
