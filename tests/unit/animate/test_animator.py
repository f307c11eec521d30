"""animate/animator.py with random weights of preset `tiny`: what is computed when, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export3d.animate.animator import Animator, Source, pick_device
from export3d.animate.drive import Driving, rebase
from export3d.animate.export import write_animation
from export3d.animate.views_sheet import expressions
from export3d.camera import Camera, from_pose, head_angles, head_position, project
from export3d.errors import (
    BadMotionFile,
    CheckpointError,
    ConfigError,
    Export3DError,
    NoFaceFound,
    OutputError,
    ShapeError,
)
from export3d.face.crop import crop
from export3d.motion.arkit import with_scores
from export3d.motion.motion import Motion
from export3d.pretrained import load_pretrained
from tests.group_photo import group_photo
from tests.made_videos import beep, clip, onset


@pytest.fixture(scope="module")
def animator(tiny_weights: Path) -> Animator:
    return Animator(load_pretrained(tiny_weights), "cpu")


@pytest.fixture(scope="module")
def source(animator: Animator, astronaut_path: Path) -> Source:
    return animator.encode(astronaut_path)


@pytest.fixture
def motion(motion_file: Path) -> Motion:
    return Motion.load(motion_file)


def test_a_portrait_is_tracked_and_cropped(source: Source, animator: Animator) -> None:
    assert source.image.shape == (animator.size, animator.size, 3)
    assert source.image.dtype == np.uint8
    assert source.expression.shape == (52,)
    assert source.camera.shape == (25,)
    yaw, pitch, roll = head_angles(source.camera)
    assert abs(yaw) < 20
    assert abs(pitch) < 20
    assert abs(roll) < 10
    assert source.others == ()
    x, y = source.crop.centre
    assert (180, 60) < (x, y) < (260, 160), "the astronaut's nose"


def test_a_head_shot_is_filled_around_the_photo_and_said(
    animator: Animator, astronaut: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    animator.encode(astronaut[5:240, 120:330])
    assert not caplog.text, "hardly anything of this crop lies outside"
    tight = animator.encode(astronaut[30:205, 150:290])
    outside = round(100 * (1 - 140 * 175 / tight.crop.side**2))
    assert 35 < outside < 50
    assert f"the portrait: the head is close to the edge of the image; {outside}% of what the model sees" in caplog.text
    repeated = crop(tight.photo, tight.crop, animator.size).astype(int)
    y, x = np.mgrid[: animator.size, : animator.size] + 0.5
    at = tight.crop.from_crop(np.stack([x, y], axis=-1), animator.size)
    away = np.maximum(-at, at - tight.photo.shape[1::-1]).max(axis=-1) / tight.crop.side
    assert np.array_equal(tight.image[away < -0.05], repeated[away < -0.05])
    beyond = away > 0.05
    assert np.abs(tight.image[beyond] - repeated[beyond]).mean() > 5


def test_a_path_and_its_pixels_give_the_same_source(
    animator: Animator, source: Source, astronaut: np.ndarray, astronaut_path: Path
) -> None:
    for portrait in (astronaut, str(astronaut_path), Image.fromarray(astronaut)):
        again = animator.encode(portrait)
        np.testing.assert_array_equal(again.image, source.image)
        np.testing.assert_array_equal(again.camera, source.camera)
        torch.testing.assert_close(again.features.features.tokens, source.features.features.tokens)


def test_a_portrait_on_its_side_becomes_an_upright_source(
    animator: Animator, source: Source, astronaut: np.ndarray
) -> None:
    turned = animator.encode(np.rot90(astronaut))
    np.testing.assert_array_equal(turned.photo, source.photo)
    np.testing.assert_array_equal(turned.image, source.image)


def test_every_face_of_a_group_photo_becomes_a_source(
    animator: Animator, astronaut: np.ndarray, tmp_path: Path
) -> None:
    photo = group_photo(astronaut)
    sources = animator.encode_all(photo)
    centres = [source.crop.centre[0] for source in sources]
    np.testing.assert_allclose(centres, [110, 290, 450], atol=8)
    assert all(source.photo is sources[0].photo for source in sources)
    assert set(sources[1].others) == {sources[0].crop, sources[2].crop}
    with pytest.raises(ConfigError, match="choose one face"):
        animator.edit(sources)
    second = animator.encode(photo, face=2)
    np.testing.assert_array_equal(second.image, sources[1].image)
    np.testing.assert_array_equal(second.camera, sources[1].camera)
    torch.testing.assert_close(second.features.features.tokens, sources[1].features.features.tokens)
    Image.fromarray(photo).save(tmp_path / "group.png")
    with pytest.raises(NoFaceFound, match=r"group\.png shows 3 faces, .*; face 9 is not one of them"):
        animator.encode(tmp_path / "group.png", face=9)


def test_a_picture_without_a_face_is_refused_by_name(animator: Animator, tmp_path: Path) -> None:
    Image.new("RGB", (200, 200), (90, 120, 60)).save(tmp_path / "meadow.png")
    with pytest.raises(NoFaceFound, match=r"meadow\.png"):
        animator.encode(tmp_path / "meadow.png")


def test_pixels_must_be_a_colour_picture(animator: Animator) -> None:
    with pytest.raises(ShapeError, match="portrait"):
        animator.encode(np.zeros((64, 64), np.uint8))


def test_rendering_twice_gives_the_same_bytes(animator: Animator, source: Source) -> None:
    label = Camera.orbit(yaw_deg=10).label
    first = animator.render(source, source.expression, label)
    assert first.shape == (animator.size, animator.size, 3)
    assert first.dtype == np.uint8
    assert first.tobytes() == animator.render(source, source.expression, label).tobytes()


def test_planes_are_shown_from_any_camera(animator: Animator, source: Source) -> None:
    planes = animator.planes(source, source.expression)
    for yaw in (0.0, 20.0):
        camera = Camera.orbit(yaw_deg=yaw).label
        shown = animator.render_planes(source, planes, camera)
        np.testing.assert_array_equal(shown, animator.render(source, source.expression, camera))
    edited = animator.edited_planes(source, {"jawOpen": 0.4}, {2: 1.0})
    np.testing.assert_array_equal(
        animator.render_planes(source, edited, source.camera), animator.edit(source, {"jawOpen": 0.4}, {2: 1.0})
    )
    with pytest.raises(ShapeError, match="expression"):
        animator.planes(source, np.zeros(51))
    with pytest.raises(ShapeError, match="camera"):
        animator.render_planes(source, planes, np.zeros(24))


def test_fewer_rays_show_nearly_the_same(animator: Animator, source: Source) -> None:
    planes = animator.planes(source, source.expression)
    camera = Camera.orbit(yaw_deg=20.0).label
    own = animator.model.config.render.resolution
    full, same, fast = (animator.render_planes(source, planes, camera, rays=rays) for rays in (None, own, own // 2))
    np.testing.assert_array_equal(full, same)
    apart = np.abs(fast.astype(int) - full)
    assert 0.0 < apart.mean() < 2.0
    assert np.abs((fast.astype(float) - full).mean(axis=(0, 1))).max() < 0.5, "the colours do not jump"


def test_warming_up_closes_the_tracker_and_changes_no_frame(
    animator: Animator, source: Source, motion: Motion, astronaut_path: Path
) -> None:
    cold = list(animator.animate(source, motion[:3], batch=2))
    tracker = animator.tracker
    animator.warm_up(source, 2)
    np.testing.assert_array_equal(cold, list(animator.animate(source, motion[:3], batch=2)))
    with pytest.raises(Export3DError, match="closed"):
        tracker.track_image(source.photo)
    assert animator.encode(astronaut_path).crop == source.crop, "with a new tracker"


def test_expression_and_camera_change_the_picture(animator: Animator, source: Source) -> None:
    """Random weights say little, but what they say must depend on both."""
    planes = animator.model.planes(source.features, torch.zeros(1, 52))
    other = animator.model.planes(source.features, torch.ones(1, 52))
    assert not torch.allclose(planes.triplane, other.triplane)
    views = [animator.model.frame(planes, torch.tensor(Camera.orbit(y).label[None]).float()) for y in (0.0, 40.0)]
    assert not torch.allclose(*views)


def test_an_edit_of_nothing_is_the_portrait_itself(animator: Animator, source: Source) -> None:
    own = animator.render(source, source.expression, source.camera)
    for unchanged in (animator.edit(source), animator.edit(source, {}, {}, 0.0), animator.edit(source, basis={2: 0.0})):
        assert unchanged.tobytes() == own.tobytes()


def test_a_score_that_no_weights_have_learned_is_warned_of_once(
    animator: Animator, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    still = Motion(expression=np.zeros((2, 52), np.float32), camera=np.repeat(source.camera[None], 2, axis=0), fps=25.0)
    makes = (
        lambda scores: animator.edit(source, scores),
        lambda scores: animator.animate(source, still, scores=scores),
        lambda scores: animator.orbit(source, seconds=0.5, scores=scores),
        lambda scores: expressions(source, animator.space, scores=scores),
    )
    for make in makes:
        make({"tongueOut": 0.0, "jawOpen": 0.5})
        assert not caplog.records
        make({"TongueOut": 1.0, "jawOpen": 0.5})
        assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["tongueOut shows no tongue"]
        caplog.clear()


def test_an_edit_sets_scores_moves_sliders_and_turns_the_head(animator: Animator, source: Source) -> None:
    expression = with_scores(source.expression, {"jawOpen": 0.8})
    camera = from_pose(head_angles(source.camera) + np.array([10.0, -5.0, 3.0]), head_position(source.camera))
    step = np.zeros(animator.model.config.expression.n)
    step[1] = 4.0
    edited = animator.edit(source, {"jawOpen": 0.8}, {2: 4.0}, yaw_deg=10, pitch_deg=-5, roll_deg=3)
    np.testing.assert_array_equal(edited, animator.render(source, expression, camera, step))
    assert (edited != animator.edit(source, {"jawOpen": 0.8}, yaw_deg=10, pitch_deg=-5, roll_deg=3)).any()
    assert (edited != animator.edit(source, {"jawOpen": 0.8}, {2: 4.0})).any()
    assert (edited != animator.edit(source, None, {2: 4.0}, yaw_deg=10, pitch_deg=-5, roll_deg=3)).any()


def test_a_model_that_moves_its_source_is_told_where_the_portraits_face_is(
    rigid_weights: Path, astronaut_path: Path
) -> None:
    """By its own camera the portrait is shown as it is; turned, it is another picture."""
    rigid = Animator(load_pretrained(rigid_weights), "cpu")
    source = rigid.encode(astronaut_path)
    own = rigid.render(source, source.expression, source.camera).astype(int)
    assert np.abs(own - source.image).max() <= 2
    view = source.features.view
    assert view is not None
    assert view.face is not None
    face = view.face
    places = face.places[0, :468].numpy()
    np.testing.assert_allclose(project(face.points[0, :468].numpy(), source.camera), places, atol=1e-4)
    assert (np.ptp(places, axis=0) > 0.25).all()
    assert (places > 0.1).all()
    assert (places < 0.9).all()
    turned = rigid.edit(source, yaw_deg=20).astype(int)
    assert np.abs(turned - own).mean() > 3
    assert np.abs(turned - rigid.edit(source, {"jawOpen": 0.8}, yaw_deg=20)).max() <= 1


def test_an_edit_that_cannot_be_is_refused(animator: Animator, source: Source) -> None:
    for edit, words in (
        ({"scores": {"jawOpn": 0.5}}, "jawOpn"),
        ({"scores": {"jawOpen": 1.5}}, "between 0 and 1"),
        ({"basis": {0: 1.0}}, "no direction 0"),
        ({"pitch_deg": float("nan")}, "finite"),
    ):
        with pytest.raises(ConfigError, match=words):
            animator.edit(source, **edit)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="shift"):
        animator.render(source, source.expression, source.camera, np.zeros(3))


def test_animating_renders_the_rebased_motion_frame_by_frame(
    animator: Animator, source: Source, motion: Motion
) -> None:
    frames = list(animator.animate(source, motion, relative=True, batch=1))
    rebased = rebase(motion, source.camera, source.expression)
    assert len(frames) == len(motion)
    for k in (0, 5, 11):
        np.testing.assert_array_equal(frames[k], animator.render(source, rebased.expression[k], rebased.camera[k]))


def test_absolute_animation_uses_the_motion_as_it_is(animator: Animator, source: Source, motion: Motion) -> None:
    frames = list(animator.animate(source, motion, relative=False, batch=1))
    np.testing.assert_array_equal(frames[3], animator.render(source, motion.expression[3], motion.camera[3]))


@pytest.mark.parametrize("batch", [5, 50])
def test_the_batch_size_does_not_change_the_pictures(
    animator: Animator, source: Source, motion: Motion, batch: int
) -> None:
    one = np.stack(list(animator.animate(source, motion, batch=1))).astype(int)
    many = np.stack(list(animator.animate(source, motion, batch=batch))).astype(int)
    assert np.abs(one - many).max() <= 1, "rounding only"


def test_the_source_is_encoded_once_and_frames_are_made_as_they_are_taken(
    animator: Animator, astronaut: np.ndarray, motion: Motion, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"encode": 0, "planes": 0}
    for name in calls:

        def counted(*args: object, _name: str = name, _real: object = getattr(animator.engine, name)) -> object:
            calls[_name] += 1
            return _real(*args)  # type: ignore[operator]

        monkeypatch.setattr(animator.engine, name, counted)
    frames = animator.animate(animator.encode(astronaut), motion, batch=4)
    assert calls == {"encode": 1, "planes": 0}
    next(frames)
    assert 1 <= calls["planes"] <= 4, "three batches are ahead at most"
    assert len(list(frames)) == len(motion) - 1
    assert calls == {"encode": 1, "planes": -(-len(motion) // 2)}, "two batches at a time make four frames"


def test_the_number_of_threads_does_not_change_the_frames(animator: Animator, source: Source, motion: Motion) -> None:
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made.append(list(animator.animate(source, motion, batch=4)))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*made)


def test_another_expression_space_is_refused_before_the_first_frame(
    animator: Animator, source: Source, motion: Motion
) -> None:
    other = Motion(np.zeros((3, 64)), motion.camera[:3], 25.0, "bfm64", {"file": "deep.mat"})
    with pytest.raises(BadMotionFile, match=r"deep\.mat is in expression space bfm64 but arkit52"):
        animator.animate(source, other)


def test_impossible_settings_are_refused(animator: Animator, source: Source, motion: Motion) -> None:
    for batch in (0, -1):
        for use in (
            lambda batch=batch: animator.animate(source, motion, batch=batch),
            lambda batch=batch: animator.warm_up(source, batch),
        ):
            with pytest.raises(ConfigError, match=f"at least 1 frame, got {batch}"):
                use()
    with pytest.raises(ShapeError, match="expression"):
        animator.render(source, np.zeros(64), source.camera)
    with pytest.raises(ShapeError, match="camera"):
        animator.render(source, source.expression, np.eye(4))


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--device cpu"):
        pick_device(name)


def test_auto_is_a_device_that_is_there() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        Animator.from_pretrained(tmp_path / "none.safetensors")


def test_the_packaged_weights_make_256_pixels_from_arkit_scores() -> None:
    animator = Animator.from_pretrained(device="cpu")
    assert animator.size == 256
    assert animator.space == "arkit52"


def test_an_animation_and_its_sheet_are_written(
    animator: Animator, source: Source, motion: Motion, tmp_path: Path
) -> None:
    from PIL import Image

    from export3d.video import read_frames

    count = write_animation(animator, source, Driving(motion), tmp_path / "a.mp4", tmp_path / "a.png")
    assert count == len(motion) == len(list(read_frames(tmp_path / "a.mp4")))
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width >= 9 * animator.size
        assert sheet.height < 2 * animator.size


def test_a_driving_video_gives_sound_and_a_second_row(
    animator: Animator, source: Source, face_video: Path, tmp_path: Path
) -> None:
    from PIL import Image

    from export3d.animate.drive import driving
    from export3d.video import probe

    write_animation(animator, source, driving(face_video), tmp_path / "a.mp4", tmp_path / "a.png")
    assert probe(tmp_path / "a.mp4").has_audio
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.height > 2 * animator.size


def test_sound_and_faces_can_come_without_the_video(
    animator: Animator, source: Source, motion: Motion, face_video: Path, tmp_path: Path
) -> None:
    from PIL import Image

    from export3d.animate.export import sheet_frames
    from export3d.video import probe

    shape = (animator.size, animator.size, 3)
    faces = [np.full(shape, 30 * number, np.uint8) for number in range(len(sheet_frames(len(motion))))]
    moved_by = Driving(motion, sound=face_video, faces=faces)
    write_animation(animator, source, moved_by, tmp_path / "a.mp4", tmp_path / "a.png")
    assert probe(tmp_path / "a.mp4").has_audio
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.height > 2 * animator.size
        middles, y = [round((column + 0.5) * sheet.width / 9) for column in range(1, 9)], sheet.height // 4
        shown = [np.array(sheet.convert("L"))[y - 5 : y + 10, x - 10 : x + 10].mean() for x in middles]
    np.testing.assert_allclose(shown, [30.0 * number for number in range(8)], atol=4.0)
    with pytest.raises(ConfigError, match="faces"):
        Driving(motion, faces=faces[1:]).pictures(sheet_frames(len(motion)))


def test_a_part_of_a_driving_video_shows_its_own_frames(face_video: Path) -> None:
    from export3d.animate.drive import driving
    from export3d.face.crop import crop
    from export3d.video import read_frames

    part = driving(face_video, start_s=0.2, seconds=0.16)
    assert (len(part.motion), part.start_s) == (4, 0.2)
    assert part.crop is not None
    np.testing.assert_array_equal(
        part.pictures([0, 3], 64)[1], crop(list(read_frames(face_video))[5 + 3], part.crop, 64)
    )


def test_a_part_of_a_driving_video_comes_with_its_own_sound(
    animator: Animator, source: Source, motion: Motion, tmp_path: Path
) -> None:
    spoken = clip(tmp_path / "spoken.mp4", 25, sound=beep(0.5, 1.0))
    write_animation(animator, source, Driving(motion[:10], spoken, start_s=0.4), tmp_path / "a.mp4")
    assert onset(tmp_path / "a.mp4") == pytest.approx(0.1, abs=0.012)


def test_without_the_sheet_there_is_no_video_either(
    animator: Animator, source: Source, motion: Motion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OutputError("cannot write the sheet: the disk is full")

    monkeypatch.setattr("export3d.animate.export.write_image", fail)
    with pytest.raises(OutputError, match="disk is full"):
        write_animation(animator, source, Driving(motion), tmp_path / "a.mp4", tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
