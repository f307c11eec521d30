"""Frames of clips for contrastive pre-training: which are drawn, and how they are cropped and varied."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from export3d.camera import Camera
from export3d.data.contrastive import ContrastConfig, ContrastSampler, cropped, draw_frames
from export3d.data.frame_layout import Clip
from export3d.data.frames import FrameStore
from export3d.errors import ConfigError, InputError
from export3d.image import resize
from export3d.motion.arkit import ARKIT52_MIRRORED
from export3d.motion.motion import SHOULDERS

PLAIN = ContrastConfig(frames=6, size=32, augment=False)
SIZE = 64


def made_up_store(lengths: tuple[int, ...] = (20, 31, 4), kinds: tuple[str, ...] = ()) -> FrameStore:
    """Clips whose pictures tell each pixel its own x (red) and y (green); all expressions differ."""
    kinds = kinds or ("video",) * len(lengths)
    rng = np.random.default_rng(1)
    starts = [0, *itertools.accumulate(lengths)]
    clips = tuple(
        Clip(f"clip{i}", kind, f"person{i}", "open", start, length)
        for i, (kind, start, length) in enumerate(zip(kinds, starts, lengths))
    )
    total = sum(lengths)
    y, x = (np.mgrid[0:SIZE, 0:SIZE] + 0.5) / SIZE * 255
    picture = torch.from_numpy(np.stack([x, y, np.full_like(x, 128)]).round().astype(np.uint8))
    centre, half = rng.uniform(0.45, 0.55, (total, 1, 2)), rng.uniform(0.2, 0.25, (total, 1, 1))
    return FrameStore(
        frames=picture.expand(total, 3, SIZE, SIZE),
        expression=torch.from_numpy(rng.random((total, 52), dtype=np.float32)),
        camera=torch.from_numpy(Camera.orbit().label).float().expand(total, 25),
        shoulders=torch.zeros(total, SHOULDERS),
        landmarks=torch.from_numpy(centre + half * rng.uniform(-1, 1, (total, 478, 2)) * [0.7, 1.0]).half(),
        found=torch.ones(total, dtype=torch.bool),
        clip=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
        clips=clips,
        space="arkit52",
    )


def sampler(store: FrameStore, seed: int = 0, **changes: Any) -> ContrastSampler:
    return ContrastSampler([store], replace(PLAIN, **changes), seed=seed)


def rows_of(store: FrameStore, expression: Tensor) -> list[int]:
    """Rows of the store that (T, 52) expressions come from."""
    return torch.cdist(expression, store.expression).argmin(1).tolist()


def clips_of(groups: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Groups taken apart, one clip each."""
    return [{name: value[i] for name, value in group.items()} for group in groups for i in range(len(group["image"]))]


def assert_equal(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


# ---- what is drawn ---------------------------------------------------------------------------------------------------


def test_a_batch_groups_clips_by_their_number_of_frames() -> None:
    store = made_up_store()
    groups = sampler(store, augment=True).batch(0, 12)
    assert sorted(group["image"].shape[1] for group in groups) == [4, 6]  # the short clip gives all it has
    assert sum(len(group["image"]) for group in groups) == 12
    for group in groups:
        g, t = group["image"].shape[:2]
        assert group["image"].shape == (g, t, 3, 32, 32)
        assert group["image"].abs().max() <= 1.0
        assert group["expression"].shape == (g, t, 52)
        assert group["same"].shape == (g, t, t)
        assert group["same"].dtype == torch.bool


def test_frames_of_a_group_are_different_frames_of_one_clip_in_order() -> None:
    store = made_up_store()
    seen = Counter()
    for clip in clips_of(sampler(store).batch(0, 60)):
        rows = rows_of(store, clip["expression"])
        assert torch.equal(clip["expression"], store.expression[rows])
        assert rows == sorted(set(rows))
        (number,) = set(store.clip[rows].tolist())
        seen[number] += 1
    assert min(seen[clip] for clip in range(3)) > 10  # long and short clips equally often


def test_a_clip_depends_on_its_number_and_the_seed_alone() -> None:
    store = made_up_store((20, 31))
    one, other = (sampler(store, augment=True) for _ in range(2))
    other.batch(900, 4)
    whole = clips_of(one.batch(40, 8))
    assert_equal(clips_of(other.batch(44, 2)), whole[4:6])
    for different in (one.batch(48, 8), sampler(store, seed=1, augment=True).batch(40, 8)):
        assert not torch.equal(clips_of(different)[0]["image"], whole[0]["image"])


@pytest.mark.parametrize("world", [2, 4])
def test_the_shares_of_processes_together_are_the_batch_of_one(world: int) -> None:
    drawn = sampler(made_up_store((20, 31)), augment=True)
    shares = [clips_of(drawn.batch(16, 8, rank, world)) for rank in range(world)]
    assert_equal(list(itertools.chain(*shares)), clips_of(drawn.batch(16, 8)))


def test_frames_without_a_face_and_portraits_are_never_drawn() -> None:
    store = made_up_store((12, 5, 1, 3), ("video", "video", "image", "image"))
    found = torch.ones(21, dtype=torch.bool)
    found[2:6] = False  # of the first clip
    found[13:17] = False  # all but one of the second
    drawn = clips_of(sampler(replace(store, found=found)).batch(0, 40))
    rows = {row for clip in drawn for row in rows_of(store, clip["expression"])}
    assert rows == {0, 1, 6, 7, 8, 9, 10, 11}


def test_spread_takes_one_frame_from_each_equal_part(rng: np.random.Generator) -> None:
    usable = np.arange(100, 200)
    drawn = np.stack([draw_frames(usable, 10, "spread", rng) for _ in range(200)])
    assert (drawn // 10 == np.arange(10, 20)).all()
    assert len(np.unique(drawn)) == 100  # any frame of a part
    for length in (11, 37, 39, 333):  # parts that are no whole number of frames
        rows = draw_frames(np.arange(length), 10, "spread", rng)
        edges = np.linspace(0, length, 11)
        assert ((rows >= edges[:-1]) & (rows < edges[1:])).all()
        assert (np.diff(rows) > 0).all()


def test_neighbours_are_consecutive_and_uniform_is_any(rng: np.random.Generator) -> None:
    usable = np.arange(0, 200, 2)
    starts = set()
    for _ in range(300):
        rows = draw_frames(usable, 10, "neighbours", rng)
        assert (np.diff(rows) == 2).all()
        starts.add(int(rows[0]))
    assert {min(starts), max(starts)} == {0, 180}
    uniform = np.stack([draw_frames(usable, 10, "uniform", rng) for _ in range(300)])
    assert (np.diff(uniform) > 0).all()
    assert len(np.unique(uniform)) == 100
    parts = [len(set(row // 20)) for row in uniform.tolist() for row in [np.array(row)]]
    assert 5 < np.mean(parts) < 8  # of ten parts: 6.7 if drawn with repetition


@pytest.mark.parametrize("draw", ["spread", "uniform", "neighbours"])
def test_a_clip_that_is_too_short_gives_all_it_has(draw: Any, rng: np.random.Generator) -> None:
    assert draw_frames(np.array([3, 7, 8]), 5, draw, rng).tolist() == [3, 7, 8]
    assert draw_frames(np.array([3, 7, 8]), 3, draw, rng).tolist() == [3, 7, 8]


@pytest.mark.slow
def test_stores_are_drawn_by_their_shares() -> None:
    real, made = made_up_store((4, 5)), made_up_store((4, 4, 4, 4), ("pseudo",) * 4)
    made = replace(made, expression=made.expression + 10.0)

    def share(*shares: float) -> float:
        drawn = clips_of(ContrastSampler([real, made], replace(PLAIN, frames=2), shares).batch(0, 300))
        return float(np.mean([float(clip["expression"].mean()) > 5 for clip in drawn]))

    assert share(1.0, 0.0) == 0.0
    assert share(0.0, 1.0) == 1.0
    assert abs(share(0.75, 0.25) - 0.25) < 0.08
    assert abs(share() - 4 / 6) < 0.08  # all clips equally


def test_only_frames_of_nearly_equal_scores_are_no_negatives() -> None:
    store = made_up_store((6,))
    expression = store.expression.clone()
    expression[1] = expression[0]
    expression[3] = expression[2] + 0.04
    store = replace(store, expression=expression)
    pairs = {}
    for near in (0.0, 0.05):
        (group,) = sampler(store, near=near).batch(0, 1)
        assert group["same"][0].diagonal().all()
        assert torch.equal(group["same"], group["same"].mT)
        a, b = torch.nonzero(group["same"][0].triu(1), as_tuple=True)
        pairs[near] = list(zip(a.tolist(), b.tolist()))
    assert pairs == {0.0: [(0, 1)], 0.05: [(0, 1), (2, 3)]}


def test_every_other_frame_can_be_a_negative() -> None:
    store = made_up_store((6,))
    store = replace(store, expression=store.expression[:1].expand(6, -1))
    (group,) = sampler(store, near=None).batch(0, 1)
    assert not group["same"].any()


def test_one_random_frame_is_the_positive() -> None:
    store = made_up_store((20,))
    assert "positive" not in sampler(store).batch(0, 1)[0]
    (group,) = sampler(store, positives="one").batch(0, 60)
    assert group["positive"].shape == (60,)
    assert set(group["positive"].tolist()) == set(range(6))
    (again,) = sampler(store, positives="one").batch(40, 20)
    assert torch.equal(again["positive"], group["positive"][40:])
    assert torch.equal(group["image"], sampler(store).batch(0, 60)[0]["image"])


# ---- how it is varied ------------------------------------------------------------------------------------------------


def test_a_mirrored_clip_has_mirrored_pictures_and_mirrored_scores() -> None:
    store = made_up_store((20, 31))
    plain = clips_of(sampler(store).batch(0, 30))
    varied = clips_of(sampler(store, augment=True, noise=0.0).batch(0, 30))
    mirrored = 0
    for before, after in zip(plain, varied):
        flipped = not torch.equal(before["expression"], after["expression"])
        expected = before["expression"][:, list(ARKIT52_MIRRORED)] if flipped else before["expression"]
        assert torch.equal(after["expression"], expected)
        red = after["image"][:, 0]
        falls = red[..., :16].mean((1, 2)) > red[..., 16:].mean((1, 2))
        assert (falls == flipped).all()
        mirrored += flipped
    assert 7 <= mirrored <= 23
    other = replace(store, expression=torch.rand(51, 64), space="bfm64")  # whose mirror image is not known
    for clip in clips_of(sampler(other, augment=True, noise=0.0).batch(0, 10)):
        assert torch.equal(clip["expression"], other.expression[rows_of(other, clip["expression"])])


def test_noise_has_the_given_deviation_and_does_not_decide_what_is_the_same() -> None:
    store = made_up_store((20, 31))
    quiet, noisy = (sampler(store, augment=True, noise=noise).batch(0, 40)[0] for noise in (0.0, 0.03))
    difference = noisy["expression"] - quiet["expression"]
    assert float(difference.std()) == pytest.approx(0.03, rel=0.05)
    assert abs(float(difference.mean())) < 0.002
    assert torch.equal(noisy["same"], quiet["same"])
    assert torch.equal(noisy["image"], quiet["image"])


def corners(crop: Tensor) -> Tensor:
    """Where in the picture, 0..1, the middles of the corner pixels of (T, 3, S, S) crops lie: (T, 2, 2, 2), x first."""
    return (crop[:, :2, :: crop.shape[-1] - 1, :: crop.shape[-1] - 1].permute(0, 2, 3, 1) + 1) / 2


def test_a_crop_centres_the_landmarks_with_a_margin() -> None:
    store = made_up_store((8,))
    crop = cropped(store, torch.arange(8), 48)
    points = store.landmarks.float()
    low, high = points.amin(1), points.amax(1)
    found = corners(crop)
    torch.testing.assert_close(found.mean((1, 2)), (low + high) / 2, rtol=0, atol=0.005)
    side = (found[:, 0, 1, 0] - found[:, 0, 0, 0]) * 48 / 47
    torch.testing.assert_close(side, 1.2 * (high - low).amax(1), rtol=0, atol=0.01)


def test_crops_are_shifted_zoomed_and_turned_by_their_own_amounts() -> None:
    store = made_up_store((8,))
    rows = torch.zeros(5, dtype=torch.int64)
    amounts = np.zeros((5, 4))
    amounts[[1, 2, 3, 4], [0, 1, 2, 3]] = 1.0
    found = corners(cropped(store, rows, 48, "face", amounts))
    side, middle = found[0, 0, 1, 0] - found[0, 0, 0, 0], found.mean((1, 2))
    moved = (middle - middle[0]) / side
    expected = torch.tensor([[0, 0], [0.05, 0], [0, 0.05], [0, 0], [0, 0]])
    torch.testing.assert_close(moved, expected, rtol=0, atol=0.01)
    top = found[:, 0, 1] - found[:, 0, 0]
    lengths = top.norm(dim=1) / side
    torch.testing.assert_close(lengths, torch.tensor([1, 1, 1, np.exp(0.1), 1]).float(), rtol=0, atol=0.02)
    assert float(torch.rad2deg(torch.atan2(top[4, 1], top[4, 0]))) == pytest.approx(8.0, abs=0.7)


def test_a_whole_frame_is_the_frame_as_prepared() -> None:
    store = made_up_store((8,))
    rows = torch.tensor([1, 5])
    exact = store.frames[rows].float() / 127.5 - 1
    torch.testing.assert_close(cropped(store, rows, SIZE, "whole"), exact)
    halved = cropped(store, rows, SIZE // 2, "whole")
    torch.testing.assert_close(halved, resize(exact, SIZE // 2))
    (group,) = sampler(store, crop="whole", size=SIZE).batch(0, 1)
    assert torch.equal(
        group["image"][0], cropped(store, torch.tensor(rows_of(store, group["expression"][0])), SIZE, "whole")
    )
    moved = cropped(store, rows, SIZE, "whole", np.array([[0.0, 0, 0, 0], [1, 0, 0, 0]]))
    torch.testing.assert_close(moved[0], exact[0], rtol=0, atol=1e-3)
    assert (corners(moved)[1] - corners(exact)[1])[:, 0, 0] == pytest.approx(0.05, abs=0.01)


def test_frames_of_a_clip_move_apart_and_change_colour_together() -> None:
    store = made_up_store((20,))
    store = replace(store, frames=torch.full_like(store.frames, 90), landmarks=store.landmarks[:1].expand(20, -1, -1))
    clips = clips_of(sampler(store, augment=True).batch(0, 5))
    for clip in clips:
        torch.testing.assert_close(clip["image"], clip["image"][:1, :, :1, :1].expand_as(clip["image"]))
    assert len({round(float(clip["image"][0, 0, 0, 0]), 3) for clip in clips}) == 5
    pictured = clips_of(sampler(replace(store, frames=made_up_store((20,)).frames), augment=True).batch(0, 1))[0]
    assert corners(pictured["image"])[:, 0, 0].std(0).min() > 0.002


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_data_without_a_contrast_are_refused() -> None:
    with pytest.raises(InputError, match="two frames"):
        sampler(made_up_store((1, 5), ("video", "image")))


def test_shares_that_leave_nothing_to_draw_are_refused() -> None:
    real, still = made_up_store((9,)), made_up_store((1,), ("image",))
    for shares in ((0.0, 1.0), (1.0,), (1.0, 0.0, 0.0), (2.0, -1.0)):
        with pytest.raises(ConfigError, match="shares"):
            ContrastSampler([real, still], PLAIN, shares)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="a batch of 3"):
        sampler(made_up_store()).batch(0, 3, 0, 2)


@pytest.mark.parametrize("changes", [{"frames": 1}, {"size": 16}, {"noise": -0.1}, {"near": -0.1}])
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ContrastConfig(**changes)
