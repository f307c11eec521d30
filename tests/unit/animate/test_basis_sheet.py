"""animate/sliders.py: arithmetic of sliders with random weights, and what strips of real pictures are found to show."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export3d.animate import basis_sheet
from export3d.animate.animator import Animator, Source
from export3d.animate.basis_sheet import Effect, Strip, Summary
from export3d.camera import head_angles
from export3d.config import tiny
from export3d.errors import ConfigError
from export3d.expression import sliders
from export3d.face.pose import still_cameras
from export3d.face.tracker import Tracker
from export3d.model import Export3D
from export3d.motion.arkit import ARKIT52
from export3d.pretrained import load_pretrained


@pytest.fixture(scope="module")
def animator(tiny_weights: Path) -> Animator:
    """Directions of natural ranges from -1 - i to 1 + 2 i."""
    model = load_pretrained(tiny_weights)
    count = torch.arange(model.config.expression.n)
    model.expression.low.copy_(-1.0 - count)
    model.expression.high.copy_(1.0 + 2.0 * count)
    return Animator(model, "cpu")


@pytest.fixture(scope="module")
def source(animator: Animator, astronaut_path: Path) -> Source:
    return animator.encode(astronaut_path)


@pytest.fixture(scope="module")
def tracker() -> Iterator[Tracker]:
    with Tracker() as tracker:
        yield tracker


@pytest.fixture
def face(astronaut: np.ndarray) -> np.ndarray:
    return astronaut[:256, 90:346]


def strip_of(*pictures: np.ndarray) -> Strip:
    return Strip(np.linspace(-1.0, 1.0, len(pictures)), list(pictures))


def effect_of(angles: tuple[float, float, float], **scores: float) -> Effect:
    values = np.array([scores.get(name, 0.0) for name in ARKIT52])
    return Effect(values, np.array(angles), np.array([8.0, 1.0]), lost=0)


LOST = Effect(np.full(52, np.nan), np.full(3, np.nan), np.full(2, np.nan), lost=7)


def test_what_a_slider_adds_can_be_read_back_from_the_embedding(animator: Animator, source: Source) -> None:
    """beta' has lambda_i as its coordinate along v_i (Eq. 3), and a slider changes its own coordinate alone."""
    model = animator.model
    assert model.expression.basis is not None
    own = sliders.coefficients(model.expression, source.expression)
    moved = own + sliders.shift(model.expression, source.expression, {3: 1.5, 1: -0.25})
    with torch.no_grad():
        embedding = model.expression.embed(torch.from_numpy(moved)[None])
        read = (embedding @ model.expression.basis().T)[0].numpy()
    wanted = own.copy()
    wanted[2] += 1.5
    wanted[0] -= 0.25
    np.testing.assert_allclose(read, wanted, atol=1e-5)


def test_sliders_add_up(animator: Animator, source: Source) -> None:
    one, other, both = (
        sliders.shift(animator.model.expression, source.expression, basis)
        for basis in ({2: 0.5}, {4: -1.0}, {4: -1.0, 2: 0.5})
    )
    np.testing.assert_array_equal(one + other, both)
    half = animator.render(source, source.expression, source.camera, both / 2 + both / 2)
    np.testing.assert_array_equal(half, animator.edit(source, basis={2: 0.5, 4: -1.0}))


def test_a_slider_far_beyond_its_natural_range_is_allowed_and_that_is_said(
    animator: Animator, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    own = sliders.coefficients(animator.model.expression, source.expression)
    with caplog.at_level(logging.WARNING, "export3d"):
        sliders.shift(animator.model.expression, source.expression, {1: 2.9 - own[0], 2: -6.0 - own[1]})
        assert caplog.text == ""
        assert sliders.shift(animator.model.expression, source.expression, {1: -3.1 - own[0]})[0] == pytest.approx(
            -3.1 - own[0]
        )
    assert "v1 goes to -3.10, far beyond its natural range of -1.00 to +1.00" in caplog.text


def test_ranges_that_were_never_measured_warn_of_nothing(
    tiny_weights: Path, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    sliders.shift(load_pretrained(tiny_weights).expression, source.expression, {1: 500.0})
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("basis", "words"),
    [
        ({0: 1.0}, "no direction 0; the directions of these weights are 1 to"),
        ({99: 1.0}, "no direction 99"),
        ({1: float("nan")}, "direction 1 cannot move by nan"),
        ({1: float("-inf")}, "direction 1 cannot move by -inf"),
        ({1: 1e30}, "between -1e6 and 1e6"),
    ],
)
def test_impossible_sliders_are_refused(
    basis: dict[int, float], words: str, animator: Animator, source: Source
) -> None:
    with pytest.raises(ConfigError, match=words):
        sliders.shift(animator.model.expression, source.expression, basis)


def test_the_largest_amounts_still_make_a_picture(animator: Animator, source: Source) -> None:
    expression, camera = (torch.tensor(value)[None] for value in (source.expression, source.camera))
    step = torch.full((1, animator.model.config.expression.n), sliders.MOST)
    assert animator.model.frame(animator.model.planes(source.features, expression, step), camera).isfinite().all()


def test_weights_without_a_basis_have_no_sliders_but_scores(source: Source) -> None:
    config = replace(tiny(), expression=replace(tiny().expression, basis=False))
    animator = Animator(Export3D(config), "cpu")
    with pytest.raises(ConfigError, match="no expression basis"):
        animator.edit(source, basis={1: 1.0})
    with pytest.raises(ConfigError, match="no expression basis"):
        basis_sheet.strips(animator, source)
    assert animator.edit(source, scores={"jawOpen": 0.5}).shape == (animator.size, animator.size, 3)


def test_a_strip_goes_from_low_through_the_portraits_own_to_high(animator: Animator, source: Source) -> None:
    own, bounds = (
        sliders.coefficients(animator.model.expression, source.expression),
        sliders.natural_range(animator.model.expression),
    )
    unmoved = animator.render(source, source.expression, source.camera)
    drawn = basis_sheet.strips(animator, source)
    assert len(drawn) == len(own) == animator.model.config.expression.n
    for i, strip in enumerate(drawn):
        np.testing.assert_allclose(strip.values[[0, 3, 6]], [bounds[i, 0], own[i], bounds[i, 1]], rtol=1e-6)
        assert (np.diff(strip.values) > 0).all()
        np.testing.assert_array_equal(strip.pictures[3], unmoved)
        for k in (0, 5):
            edited = animator.edit(source, basis={i + 1: strip.values[k] - own[i]})
            np.testing.assert_array_equal(strip.pictures[k], edited)


def test_a_strip_between_limits_sets_lambda_itself(source: Source) -> None:
    """As Fig. 8 and 12: from the first limit to the second, wherever the portrait's own lambda lies."""
    animator = Animator(Export3D(replace(tiny(), expression=replace(tiny().expression, n=2))), "cpu")
    own = sliders.coefficients(animator.model.expression, source.expression)
    drawn = basis_sheet.strips(animator, source, (1.0, -5.0))
    assert len(drawn) == len(own) == 2
    for i in (0, 1):
        np.testing.assert_array_equal(drawn[i].values, [1.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0])
        for k in (0, 6):
            edited = animator.edit(source, basis={i + 1: drawn[i].values[k] - own[i]})
            np.testing.assert_array_equal(drawn[i].pictures[k], edited)


@pytest.mark.parametrize("limits", [(1.0, 1.0), (float("nan"), 1.0), (1.0, float("nan")), (0.0, float("inf"))])
def test_impossible_limits_are_refused(limits: tuple[float, float], animator: Animator, source: Source) -> None:
    with pytest.raises(ConfigError, match="lambda cannot run from"):
        basis_sheet.strips(animator, source, limits)


def test_a_strip_needs_natural_ranges(tiny_weights: Path, source: Source) -> None:
    with pytest.raises(ConfigError, match="never measured"):
        basis_sheet.strips(Animator(load_pretrained(tiny_weights), "cpu"), source)


@pytest.mark.slow
def test_pictures_that_are_all_the_same_show_no_change(tracker: Tracker, face: np.ndarray) -> None:
    found = basis_sheet.effect(tracker, strip_of(face, face, face))
    assert found.lost == 0
    for value in (found.scores, found.angles, found.pixels):
        np.testing.assert_array_equal(value, 0.0)


def test_a_head_that_tilts_is_measured_in_degrees(tracker: Tracker, astronaut_turns: list[np.ndarray]) -> None:
    tilted = basis_sheet.effect(tracker, strip_of(astronaut_turns[6], astronaut_turns[0], astronaut_turns[18]))
    assert tilted.angles[2] == pytest.approx(24.0, abs=1.5)


def test_the_angles_of_a_picture_are_those_of_the_head_itself(tracker: Tracker, face: np.ndarray) -> None:
    """Not the tracker's cameras: whatever the landmarks tell of the face is taken off."""
    angles = basis_sheet.read_face(tracker, face)[1]
    track = tracker.track_image(face)
    still, cameras = head_angles(still_cameras(track.landmarks, 256)[0][0]), head_angles(track.motion.camera[0])
    np.testing.assert_allclose(angles, still, atol=0.6)  # the mean of nine shifts
    assert np.abs(still - cameras).max() > 1.0  # she smiles


def test_a_change_is_told_apart_by_where_it_is(tracker: Tracker, face: np.ndarray) -> None:
    darker, elsewhere = face.copy(), face.copy()
    darker[100:130, 110:150] //= 2  # the nose
    elsewhere[220:250] //= 2  # the suit
    inside, outside = basis_sheet.effect(tracker, strip_of(face, darker)).pixels
    assert inside > 1.0
    assert outside == 0.0
    inside, outside = basis_sheet.effect(tracker, strip_of(face, elsewhere)).pixels
    assert inside == 0.0
    assert outside > 1.0


@pytest.mark.slow
def test_faces_that_are_lost_are_counted(tracker: Tracker, face: np.ndarray) -> None:
    blank = np.full_like(face, 90)
    some = basis_sheet.effect(tracker, strip_of(face, blank, face))
    assert some.lost == 1
    np.testing.assert_array_equal(some.angles, 0.0)
    end = basis_sheet.effect(tracker, strip_of(blank, face, face))
    assert np.isnan(end.scores).all()
    assert np.isfinite(end.angles).all()
    none = basis_sheet.effect(tracker, strip_of(blank, blank))
    assert none.lost == 2
    assert np.isnan(none.pixels).all()


def test_the_table_takes_the_mean_score_and_the_largest_turn() -> None:
    effects = [
        [effect_of((0.1, 0.2, 0.3), jawOpen=0.4, mouthPucker=-0.6), effect_of((0.3, 0.1, 0.2), jawOpen=0.2), LOST],
        [effect_of((0.0, 1.5, 0.0), eyeBlinkLeft=0.9), LOST, LOST],
        [LOST, LOST, LOST],
    ]
    summary = Summary(["ann", "bob", "cy"], np.array([[-1.0, 2.0]] * 3), effects)
    assert summary.moving == [2, 3]
    text = summary.markdown()
    assert "| v1 | -1.00 to +2.00 | jawOpen +0.30, mouthPucker -0.30," in text
    assert "| 0.30 | 0.20 | 0.30 | 8.0 | 1.0 |" in text
    assert "eyeBlinkLeft +0.90" in text
    assert "| v3 | -1.00 to +2.00 | no face found | nan | nan | nan | nan | nan |" in text
    assert "in 42 of 63 pictures no face was found" in text


def test_every_portrait_gets_a_sheet_and_all_get_one_table(
    astronaut_path: Path, face: np.ndarray, tmp_path: Path
) -> None:
    animator = Animator(Export3D(replace(tiny(), expression=replace(tiny().expression, n=2))), "cpu")
    animator.model.expression.high.fill_(1.0)
    Image.fromarray(face).save(tmp_path / "face.png")
    done: list[int] = []
    portraits = [astronaut_path, tmp_path / "face.png"]
    summary = basis_sheet.write_basis(animator, portraits, tmp_path / "out", lambda: done.append(1))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"basis_astronaut.png", "basis_face.png", "basis.md"}
    assert (tmp_path / "out" / "basis.md").read_text() == summary.markdown()
    assert [len(effects) for effects in summary.effects] == [2, 2]
    assert len(done) == 2
    with Image.open(tmp_path / "out" / "basis_face.png") as sheet:
        assert sheet.width == 7 * animator.size + 8 * 4


def test_two_portraits_of_one_name_are_refused(animator: Animator, astronaut_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two portraits are called astronaut"):
        basis_sheet.write_basis(animator, [astronaut_path, astronaut_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
