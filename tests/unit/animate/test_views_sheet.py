"""animate/views_sheet.py: which expressions, which cameras, and what a depth map shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export3d.animate.animator import Animator, Source
from export3d.animate.drive import rebase, reference_frame
from export3d.animate.views_sheet import EXPRESSIONS, TURNS, depth_maps, expressions, moments, views_sheet, write_views
from export3d.camera import Camera, turned
from export3d.errors import BadMotionFile, ConfigError
from export3d.motion.arkit import ARKIT52
from export3d.motion.motion import Motion
from export3d.pretrained import load_pretrained

GREY, NEAR, FAR = (225, 225, 225), (253, 231, 37), (68, 1, 84)


@pytest.fixture(scope="module")
def animator(tiny_weights: Path) -> Animator:
    return Animator(load_pretrained(tiny_weights), "cpu")


@pytest.fixture(scope="module")
def source(animator: Animator, astronaut_path: Path) -> Source:
    return animator.encode(astronaut_path)


def ball(camera: np.ndarray, radius: float = 0.1, wall: float = 0.3, size: int = 32) -> np.ndarray:
    """(size, size) depths of a ball about the head's origin before a wall behind it."""
    import torch

    from export3d.render.rays import camera_rays

    origins, directions = (ray[0].double().numpy() for ray in camera_rays(torch.tensor(camera)[None], size))
    along = -(origins * directions).sum(-1)
    nearest = (origins + along[:, None] * directions) ** 2
    half = radius**2 - nearest.sum(-1)
    behind = (wall - origins[:, 2]) / directions[:, 2]
    return np.where(half > 0, along - np.sqrt(half.clip(0)), behind).reshape(size, size)


def test_moments_are_the_frames_that_differ_most() -> None:
    expression = np.zeros((9, 52))
    expression[2, ARKIT52.index("jawOpen")] = 1.0
    expression[5, ARKIT52.index("browDownLeft")] = 0.8
    expression[7, ARKIT52.index("mouthPucker")] = 0.6
    motion = Motion(expression, np.tile(Camera.look_at().label, (9, 1)), 25.0, "arkit52")
    assert moments(motion) == [2, 5, 7]
    assert moments(motion[:1]) == [0]
    assert moments(motion[1:3]) == [1]


def test_rows_are_the_own_expression_and_set_scores(source: Source) -> None:
    rows = expressions(source, "arkit52")
    assert list(rows) == list(EXPRESSIONS)
    np.testing.assert_array_equal(rows["own"], source.expression)
    jaw = ARKIT52.index("jawOpen")
    assert rows["jaw open"][jaw] == pytest.approx(0.7)
    np.testing.assert_array_equal(np.delete(rows["jaw open"], jaw), np.delete(source.expression, jaw))
    rows = expressions(source, "arkit52", scores={"jawOpen": 0.25})
    assert list(rows) == ["own", "jawOpen 0.25"]
    assert rows["jawOpen 0.25"][jaw] == 0.25


def test_rows_of_a_motion_are_relative(source: Source, motion_file: Path) -> None:
    motion = Motion.load(motion_file)
    rows = expressions(source, "arkit52", motion)
    rebased = rebase(motion, source.camera, source.expression).expression
    shown = moments(motion)
    assert list(rows) == ["own", *(f"{k / 25:.2f} s" for k in shown)]
    np.testing.assert_array_equal(list(rows.values())[1:], rebased[shown])
    assert reference_frame(motion) not in shown


def test_rows_need_the_right_space(source: Source, motion_file: Path) -> None:
    with pytest.raises(ConfigError, match="no ARKit scores; give a motion"):
        expressions(source, "bfm64")
    with pytest.raises(BadMotionFile):
        expressions(source, "bfm64", Motion.load(motion_file))
    with pytest.raises(ConfigError, match="jawOpn"):
        expressions(source, "arkit52", scores={"jawOpn": 0.5})


def test_a_depth_map_shows_the_head_alone_near_to_far() -> None:
    cameras = np.stack([Camera.orbit(yaw_deg=yaw).label for yaw in (0.0, 20.0)]).astype(np.float32)
    maps = depth_maps(np.stack([ball(camera) for camera in cameras]), cameras, 64)
    for picture in maps:
        assert picture.shape == (64, 64, 3)
        assert picture.dtype == np.uint8
        assert tuple(picture[0, 0]) == GREY, "the wall"
        np.testing.assert_allclose(picture[32, 32], NEAR, atol=12)
        red = picture[32, 32:54, 0].astype(int)
        assert (np.diff(red[red != GREY[0]][::6]) <= 0).all(), "away from the middle it gets farther"
    ball_px = (np.any(maps[0] != GREY, axis=-1)).sum()
    assert ball_px == pytest.approx(np.pi * (0.1 / 2.7 * 4.2647 * 64) ** 2, rel=0.1)


def test_the_depths_of_a_head_share_one_scale() -> None:
    """A ball twice as deep as another is not shown like it."""
    camera = Camera.look_at().label.astype(np.float32)
    large, small = depth_maps(np.stack([ball(camera, 0.12), ball(camera, 0.05)]), np.stack([camera] * 2), 32)
    np.testing.assert_allclose(large[16, 16], NEAR, atol=12)
    assert np.abs(small[16, 16].astype(int) - NEAR).max() > 60
    assert np.abs(large.astype(int) - FAR).max(axis=-1).min() < 60


def test_a_view_without_a_head_is_grey() -> None:
    camera = Camera.look_at().label.astype(np.float32)
    assert (depth_maps(np.full((1, 8, 8), 3.2), camera[None], 16)[0] == GREY[0]).all()


def test_a_sheet_has_a_row_of_images_and_one_of_depth_for_each_expression(animator: Animator, source: Source) -> None:
    rows = {"own": source.expression, "other": np.full(52, 0.4, np.float32)}
    pictures, labels = views_sheet(animator, source, rows)
    assert [len(row) for row in pictures] == [1, 7, 7, 7, 7]
    assert labels[1] == ["own", "yaw -30", "yaw -15", "yaw +15", "yaw +30", "pitch -15", "pitch +15"]
    assert labels[3][0] == "other"
    assert len(labels) == len(pictures)
    np.testing.assert_array_equal(pictures[0][0], source.image)
    for column, turn in ((0, (0, 0, 0)), (4, (30, 0, 0)), (5, (0, -15, 0))):
        camera = turned(source.camera, np.array(turn))
        np.testing.assert_array_equal(pictures[3][column], animator.render(source, rows["other"], camera))
    assert list(TURNS.values())[4] == (30.0, 0.0, 0.0)


def test_every_portrait_gets_a_sheet(
    animator: Animator, astronaut_path: Path, motion_file: Path, tmp_path: Path
) -> None:
    done: list[int] = []
    motion = Motion.load(motion_file)[:2]
    written = write_views(animator, [astronaut_path], tmp_path / "out", motion, progress=lambda: done.append(1))
    assert written == [tmp_path / "out" / "views_astronaut.png"]
    assert len(done) == 1
    with Image.open(written[0]) as sheet:
        assert sheet.size == (7 * (animator.size + 4) + 4, 5 * (animator.size + 18) + 4)


def test_two_portraits_of_one_name_are_refused(animator: Animator, astronaut_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two portraits are called astronaut"):
        write_views(animator, [astronaut_path, astronaut_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_motion_of_another_space_is_refused_before_anything_is_written(
    animator: Animator, astronaut_path: Path, motion_file: Path, tmp_path: Path
) -> None:
    motion = Motion.load(motion_file)
    other = replace(motion, expression=np.zeros((len(motion), 64), np.float32), space="bfm64")
    with pytest.raises(BadMotionFile, match="bfm64"):
        write_views(animator, [astronaut_path], tmp_path, other)
    assert list(tmp_path.iterdir()) == []
