"""The whole photo, other sizes and several faces with the packaged weights: what moves, what stays, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export3d.animate import animator as module
from export3d.animate.animator import Animator, Source
from export3d.animate.drive import Driving, bundled_motion, read_motion
from export3d.animate.export import write_animation
from export3d.errors import BadImage, ConfigError
from export3d.face.crop import CropBox
from export3d.motion.motion import Motion
from tests.group_photo import group_photo


@pytest.fixture(scope="module")
def motion() -> Motion:
    """Three frames: at rest, turned to the right, speaking."""
    whole = read_motion(bundled_motion("turns")).motion
    return replace(whole, expression=whole.expression[[0, 60, 90]], camera=whole.camera[[0, 60, 90]])


def far_from(source: Source, sides: float) -> np.ndarray:
    """The pixels (H, W) of the photo farther than so many crop sides from the middle of the face."""
    y, x = np.mgrid[: source.photo.shape[0], : source.photo.shape[1]]
    return np.hypot(x - source.crop.centre[0], y - source.crop.centre[1]) > sides * source.crop.side


@pytest.mark.slow
def test_the_head_moves_in_the_photo_and_the_rest_stays_to_the_bit(
    animator: Animator, source: Source, motion: Motion
) -> None:
    frames = list(animator.animate(source, motion, size="native", frame="photo"))
    photo = source.photo
    assert [frame.shape for frame in frames] == [photo.shape] * 3
    far = far_from(source, 1.25)
    wall = np.zeros(far.shape, bool)
    wall[:110, 80:120] = wall[:60, 330:380] = True  # background on both sides of the hair, within the crop's reach
    for frame in frames:
        assert np.array_equal(frame[far], photo[far])
        assert np.array_equal(frame[wall], photo[wall])
    face = (slice(80, 150), slice(190, 250))
    assert np.abs(frames[1][face].astype(int) - photo[face]).mean() > 10


@pytest.mark.slow
def test_frames_of_the_models_size_are_the_same_as_ever(animator: Animator, source: Source, motion: Motion) -> None:
    plain = animator.edit(source, {"jawOpen": 0.5})
    assert plain.shape == (256, 256, 3)
    assert np.array_equal(animator.edit(source, {"jawOpen": 0.5}, size=animator.size), plain)
    large = animator.edit(source, {"jawOpen": 0.5}, size="native")
    assert large.shape == (200, 200, 3), "the astronaut's own pixels"


def test_the_models_size_is_the_models_own_image_also_where_it_is_text(animator: Animator, source: Source) -> None:
    """The bundled portrait's crop has fewer pixels: put together from the photo, it would be smaller."""
    still = animator.edit(source, {"jawOpen": 0.5}, **animator.framing("crop", "256"))
    np.testing.assert_array_equal(still, animator.edit(source, {"jawOpen": 0.5}))
    assert still.shape == (256, 256, 3)


def test_a_replaced_background_is_seen_where_nobody_is(animator: Animator, source: Source) -> None:
    made = animator.edit(source, yaw_deg=10.0, size="native", frame="photo", background="#10e030")
    assert np.array_equal(made[5:40, 110:140], np.broadcast_to((16, 224, 48), (35, 30, 3)))
    assert np.abs(made[400, 150].astype(int) - source.photo[400, 150]).max() <= 2, "the suit stays"


@pytest.mark.slow
def test_one_or_all_faces_of_a_group_move(animator: Animator, astronaut: np.ndarray) -> None:
    group = group_photo(astronaut, [(160, 150, 260), (420, 150, 240), (680, 150, 250)], size=(300, 840))
    everybody = animator.encode_all(group)
    assert [len(one.others) for one in everybody] == [2, 2, 2]
    wanted = {"scores": {"jawOpen": 0.7}, "size": "native", "frame": "photo"}
    mouths = [(slice(185, 230), slice(x - 30, x + 30)) for x in (160, 420, 680)]
    one, every = animator.edit(everybody[1], **wanted), animator.edit(everybody, **wanted)
    change = [[np.abs(image[mouth].astype(int) - group[mouth]).mean() for mouth in mouths] for image in (one, every)]
    assert [value > 3 for value in change[0]] == [False, True, False], change
    assert change[0][0] == change[0][2] == 0
    assert all(value > 3 for value in change[1]), change


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"size": 100}, "256 to 1024"),
        ({"size": "big"}, "256 to 1024"),
        ({"frame": "square"}, "photo or crop"),
        ({"background": "#12"}, "hexadecimal"),
    ],
)
def test_what_cannot_be_is_refused(
    animator: Animator, source: Source, motion: Motion, wanted: dict[str, object], words: str
) -> None:
    for function in (animator.animate, lambda one, _, **options: animator.edit(one, **options)):
        with pytest.raises(ConfigError, match=words):
            function(source, motion, **wanted)  # type: ignore[operator]


def test_a_background_that_cannot_be_read_is_named(animator: Animator, source: Source, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"missing\.png"):
        animator.edit(source, background=str(tmp_path / "missing.png"))


def test_faces_of_two_photos_do_not_move_together(animator: Animator, source: Source, astronaut: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="encode_all"):
        animator.edit([source, animator.encode(astronaut.copy())], frame="photo")
    with pytest.raises(ConfigError, match="encode_all"):
        animator.edit([], frame="photo")
    with pytest.raises(ConfigError, match="several faces"):
        animator.edit([source, replace(source)], size=256)


def test_weights_that_render_everything_have_one_size(tiny_weights: Path, astronaut: np.ndarray) -> None:
    tiny = Animator.from_pretrained(tiny_weights, device="cpu")
    with pytest.raises(ConfigError, match="leave out size"):
        tiny.edit(tiny.encode(astronaut), frame="photo")


@pytest.mark.slow
def test_a_face_that_is_no_person_stays_in_the_background(animator: Animator, source: Source) -> None:
    poster = replace(source, others=(CropBox((60.0, 60.0), 70.0),))
    made = animator.edit(poster, size="native", frame="photo", background="#10e030")
    assert np.array_equal(made[50:70, 50:70], np.broadcast_to((16, 224, 48), (20, 20, 3)))


def test_frames_do_not_follow_the_array_that_was_encoded(animator: Animator, astronaut: np.ndarray) -> None:
    photo = astronaut.copy()
    source = animator.encode(photo)
    photo[:] = 0
    assert np.array_equal(source.photo, astronaut)


def test_no_face_moves_twice(animator: Animator, source: Source) -> None:
    with pytest.raises(ConfigError, match="twice"):
        animator.edit([source, source], frame="photo")


@pytest.mark.slow
def test_a_video_and_its_sheet_take_the_photo_apart_once(
    animator: Animator, source: Source, motion: Motion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    scene = module.scene
    monkeypatch.setattr(module, "scene", lambda *args, **kwargs: made.append(1) or scene(*args, **kwargs))
    animator.forget(source)
    outputs = (tmp_path / "a.mp4", tmp_path / "a.png")
    write_animation(animator, source, Driving(motion[:1]), *outputs, size="native", frame="photo")
    assert len(made) == 1


@pytest.mark.slow
def test_a_head_and_a_video_keep_their_views_and_are_forgotten_with_their_source(
    animator: Animator, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    scene = module.scene
    monkeypatch.setattr(module, "scene", lambda *args, **kwargs: made.append(1) or scene(*args, **kwargs))
    planes = animator.planes(source, source.expression)

    def views(*colours: str) -> int:
        made.clear()
        for colour in colours:
            animator.render_planes(source, planes, source.camera, size="native", background=colour)
        return len(made)

    animator.forget(source)
    assert views("#000000", "#111111", "#000000", "#222222", "#111111", "#000000") == 3
    assert views("#333333", "#000000", "#222222") == 2, "#222222 was not used for longest"
    animator.forget(source)
    assert views("#000000") == 1


@pytest.mark.slow
def test_a_head_shot_that_turns_shows_no_stripes(animator: Animator, astronaut: np.ndarray) -> None:
    """With repeated edges, pixels along the frame's borders differ by 2 to 4 grey levels from their neighbours."""
    turned = animator.edit(animator.encode(astronaut[30:205, 150:290]), yaw_deg=-20.0)
    for border in (turned[-1], turned[:, 0], turned[:, -1]):
        assert np.abs(np.diff(border.astype(int), axis=0)).mean() < 1.5
