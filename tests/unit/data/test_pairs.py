from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import export3d.camera as cameras
from export3d.data.pairs import Augment, FrameStore, PairSampler, moved_camera
from export3d.data.shard_writer import update
from export3d.data.shards import Record
from export3d.errors import ConfigError, InputError
from export3d.face.mesh import canonical_mesh, landmark_mirror_map
from export3d.image import resize
from export3d.motion.arkit import ARKIT52

Make = Callable[..., Record]
PLAIN = {"mirror": False, "augment": False}
KEYS = {
    "source", "driving", "source_expression", "expression", "source_camera", "camera", "source_landmarks", "landmarks",
    "shoulders", "valid", "clip",
}  # fmt: skip


@pytest.fixture
def store(split: Path) -> FrameStore:
    return FrameStore.load(split, 32)


def rows_of(store: FrameStore, expressions: torch.Tensor) -> list[int]:
    """Which row of the store each expression (B, 52) comes from (they are random, so all differ)."""
    return torch.cdist(expressions, store.expression).argmin(1).tolist()


def test_a_batch_has_the_promised_tensors(store: FrameStore) -> None:
    batch = PairSampler(store, 0).batch(0, 8)
    assert set(batch) == KEYS
    assert batch["source"].shape == batch["driving"].shape == (8, 3, 32, 32)
    assert batch["landmarks"].shape == batch["source_landmarks"].shape == (8, 478, 2)
    assert batch["valid"].shape == (8, 1, 32, 32)
    assert batch["clip"].dtype == torch.int64
    for name in KEYS - {"clip"}:
        assert batch[name].dtype == torch.float32
        assert torch.isfinite(batch[name]).all()
    for name in ("source", "driving"):
        assert batch[name].abs().max() <= 1.0


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_get_the_batch_of_one_process(store: FrameStore, world: int) -> None:
    sampler = PairSampler(store, 3, hard_fraction=0.5)
    whole = sampler.batch(40, 8)
    shares = [sampler.batch(40, 8, rank, world) for rank in range(world)]
    for name in KEYS:
        torch.testing.assert_close(torch.cat([share[name] for share in shares]), whole[name], rtol=0, atol=1e-6)


def test_a_sample_depends_on_its_number_not_on_the_batch(store: FrameStore) -> None:
    a = PairSampler(store, 3)
    b = PairSampler(store, 3)
    b.batch(1000, 4)  # an earlier call leaves no trace
    whole, later = a.batch(16, 8), b.batch(20, 2)
    for name in KEYS:
        torch.testing.assert_close(later[name], whole[name][4:6], rtol=0, atol=1e-6)


def test_seeds_and_numbers_give_different_samples(store: FrameStore) -> None:
    first = PairSampler(store, 0).batch(0, 16)
    for other in (PairSampler(store, 1).batch(0, 16), PairSampler(store, 0).batch(16, 16)):
        assert not torch.equal(first["source"], other["source"])


def test_video_pairs_are_two_different_frames_of_one_clip(store: FrameStore) -> None:
    batch = PairSampler(store, 0, still_fraction=0.0, **PLAIN).batch(0, 200)
    source, driving = rows_of(store, batch["source_expression"]), rows_of(store, batch["expression"])
    assert all(a != b for a, b in zip(source, driving))
    assert store.clip[source].tolist() == store.clip[driving].tolist() == batch["clip"].tolist()
    assert set(source) == set(driving) == set(range(19))
    assert torch.equal(batch["driving"], store.frames[driving].float() / 127.5 - 1)
    assert torch.equal(batch["camera"], store.camera[driving])
    assert torch.equal(batch["source_camera"], store.camera[source])
    assert torch.equal(batch["landmarks"], store.landmarks[driving].float())
    assert torch.equal(batch["source_landmarks"], store.landmarks[source].float())


def test_a_still_is_its_own_target(store: FrameStore) -> None:
    batch = PairSampler(store, 0, still_fraction=1.0, **PLAIN).batch(0, 20)
    assert torch.equal(batch["source"], batch["driving"])
    assert {store.kinds[clip] for clip in batch["clip"].tolist()} == {"image"}


def test_portraits_of_one_sitting_are_pairs_and_others_stay_alone(tmp_path: Path, make_record: Make) -> None:
    sat = {"a": ("p", "monday"), "b": ("p", "monday"), "c": ("p", "friday"), "d": ("q", "monday"), "e": ("p", "")}
    edges = {"a": (0.0, 0.0, 1.0, 1.0), "b": (0.0, 0.0, 0.5, 1.0)}
    records = [
        make_record(key, still=True, person=person, origin={"sitting": word}, inside=edges.get(key, edges["a"]))
        for key, (person, word) in sat.items()
    ]
    update(tmp_path / "train", [*records, make_record("video", 4, person="p", origin={"sitting": "monday"})])
    store = FrameStore.load(tmp_path / "train", 32)
    batch = PairSampler(store, 0, still_fraction=1.0, **PLAIN).batch(0, 200)
    source, driving = rows_of(store, batch["source_expression"]), rows_of(store, batch["expression"])
    names = dict(enumerate(store.names[number] for number in store.clip.tolist()))
    found = {(names[one], names[other]) for one, other in zip(source, driving)}
    assert found == {("a", "b"), ("b", "a"), ("c", "c"), ("d", "d"), ("e", "e")}
    counts = Counter(names[row] for row in source)
    assert max(counts.values()) < 1.8 * min(counts.values()), "a sitting is drawn no more often than its portraits"
    valid = {names[row]: float(valid.mean()) for row, valid in zip(driving, batch["valid"])}
    assert valid == {"a": 1.0, "b": 0.5, "c": 1.0, "d": 1.0, "e": 1.0}, "of the driving portrait"
    store.save(tmp_path / "packed")
    assert FrameStore.load_packed(tmp_path / "packed").clips == store.clips
    twice = PairSampler(FrameStore.join([store, store]), 0, still_fraction=1.0, mirror=False).batch(0, 200)
    assert not any(torch.equal(*pair) for pair in zip(twice["source"], twice["driving"])), "as a window may hold it"


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_stills_have_their_share_of_the_samples(store: FrameStore, fraction: float) -> None:
    clips = PairSampler(store, 0, still_fraction=fraction, **PLAIN).batch(0, 1500)["clip"].tolist()
    share = np.mean([store.kinds[clip] == "image" for clip in clips])
    assert abs(share - fraction) < 0.04


@pytest.mark.parametrize(("still", "pseudo"), [(0.3, 0.3), (0.0, 0.5), (1.0, 0.0)])
def test_pseudo_clips_have_their_share_where_there_are_any(store: FrameStore, still: float, pseudo: float) -> None:
    joined = FrameStore.join([store, store.as_pseudo()])
    assert joined.kinds == ["video"] * 3 + ["image"] * 3 + ["pseudo"] * 3 + ["image"] * 3
    sampler = PairSampler(joined, 0, still_fraction=still, pseudo_fraction=pseudo)
    kinds = [joined.kinds[clip] for clip in sampler.batch(0, 1000)["clip"].tolist()]
    assert abs(np.mean([kind == "pseudo" for kind in kinds]) - pseudo) < 0.05
    assert abs(np.mean([kind == "image" for kind in kinds]) - still) < 0.05
    with pytest.raises(ConfigError, match="together"):
        PairSampler(joined, 0, still_fraction=0.8, pseudo_fraction=0.3)


def test_longer_clips_are_drawn_by_the_root_of_their_length(store: FrameStore) -> None:
    clips = Counter(PairSampler(store, 0, still_fraction=0.0, **PLAIN).batch(0, 3000)["clip"].tolist())
    expected = np.sqrt([6, 9, 4]) / np.sqrt([6, 9, 4]).sum()
    assert np.abs(np.array([clips[0], clips[1], clips[2]]) / 3000 - expected).max() < 0.03


def test_one_kind_of_record_is_enough(tmp_path: Path, make_record: Make) -> None:
    for name, still in (("a", True), ("b", False)):
        update(tmp_path / name, [make_record("x", 3, still)])
        store = FrameStore.load(tmp_path / name, 16)
        for fraction in (0.0, 0.3, 1.0):
            assert PairSampler(store, 0, still_fraction=fraction).batch(0, 4)["clip"].tolist() == [0] * 4


def test_frames_without_a_face_are_never_drawn(tmp_path: Path, make_record: Make) -> None:
    record = make_record("x", 6)
    found = np.array([True, False, True, False, False, True])
    lost = Record("x", record.media, "mp4", record.expression, record.camera, record.landmarks, found, record.info)
    update(tmp_path / "s", [lost])
    store = FrameStore.load(tmp_path / "s", 16)
    batch = PairSampler(store, 0, **PLAIN).batch(0, 60)
    for name in ("source_expression", "expression"):
        assert set(rows_of(store, batch[name])) == {0, 2, 5}


def test_hard_pairs_are_farther_apart(store: FrameStore) -> None:
    def distance(hard: float) -> float:
        batch = PairSampler(store, 0, still_fraction=0.0, hard_fraction=hard, **PLAIN).batch(0, 300)
        expression = (batch["expression"] - batch["source_expression"]).abs().sum(1)
        angles = [cameras.head_angles(batch[name].double().numpy()) for name in ("camera", "source_camera")]
        return float(expression.mean()) + float(np.abs(angles[0] - angles[1]).sum(1).mean() / 15)

    assert distance(1.0) > 1.05 * distance(0.0)


def test_a_curriculum_brings_hard_pairs_in_by_the_number_of_a_sample(store: FrameStore) -> None:
    settings = {"still_fraction": 0.0, "hard_fraction": 1.0, **PLAIN}
    growing = PairSampler(store, 0, curriculum_images=400, **settings)
    easy, hard = PairSampler(store, 0, **{**settings, "hard_fraction": 0.0}), PairSampler(store, 0, **settings)

    def rows(sampler: PairSampler, first: int) -> list[int]:
        return rows_of(store, sampler.batch(first, 100)["expression"])

    assert torch.equal(growing.batch(0, 1)["driving"], easy.batch(0, 1)["driving"])
    differing = [sum(a != b for a, b in zip(rows(growing, n), rows(hard, n))) for n in (0, 100, 200, 300)]
    assert differing[0] > differing[2] > differing[3] > 0
    assert rows(growing, 400) == rows(hard, 400)
    assert rows(growing, 200) == rows(PairSampler(store, 0, curriculum_images=400, **settings), 200)


def test_a_mirrored_sample_mirrors_everything(store: FrameStore) -> None:
    plain = PairSampler(store, 5, mirror=False, augment=False).batch(0, 32)
    mixed = PairSampler(store, 5, mirror=True, augment=False).batch(0, 32)
    flipped = [i for i in range(32) if not torch.equal(plain["source"][i], mixed["source"][i])]
    assert 6 <= len(flipped) <= 26
    names = [n.replace("Left", "~").replace("Right", "Left").replace("~", "Right") for n in ARKIT52]
    swap = [ARKIT52.index(name) for name in names]
    for i in flipped:
        for name in ("source", "driving"):
            assert torch.equal(mixed[name][i], plain[name][i].flip(-1))
        for name in ("source_expression", "expression"):
            assert torch.equal(mixed[name][i], plain[name][i][swap])
        for name in ("source_camera", "camera"):
            twin = cameras.mirror(plain[name][i].double().numpy())
            np.testing.assert_allclose(mixed[name][i], twin, atol=1e-6)
        for name in ("source_landmarks", "landmarks"):
            other = plain[name][i][landmark_mirror_map()]
            torch.testing.assert_close(mixed[name][i], torch.stack([1 - other[:, 0], other[:, 1]], -1))
    assert swap[ARKIT52.index("eyeBlinkLeft")] == ARKIT52.index("eyeBlinkRight")
    assert swap[ARKIT52.index("jawRight")] == ARKIT52.index("jawLeft")


def test_the_landmark_mirror_map_is_its_own_inverse_and_keeps_the_midline() -> None:
    mirror = landmark_mirror_map()
    assert np.array_equal(mirror[mirror], np.arange(478))
    assert mirror[4] == 4  # nose tip
    assert mirror[10] == 10  # top of the forehead
    assert mirror[33] == 263  # outer corners of the eyes
    assert (mirror[468], mirror[470], mirror[469]) == (473, 475, 476)  # iris: centre, top, right rim
    vertices = canonical_mesh().vertices_cm
    np.testing.assert_allclose(vertices[mirror[:468]], vertices * [-1, 1, 1], atol=1e-9)


def test_a_moved_camera_sees_points_where_the_picture_shows_them() -> None:
    rng = np.random.default_rng(1)
    labels = np.stack([cameras.Camera.orbit(yaw, pitch).label for yaw, pitch in rng.uniform(-30, 30, (5, 2))])
    labels[:, 18] += rng.uniform(-0.1, 0.1, 5)  # principal points off the middle
    geometry = np.stack([*rng.uniform(-0.1, 0.1, (2, 5)), rng.uniform(0.8, 1.2, 5), rng.uniform(-0.4, 0.4, 5)], 1)
    points = rng.uniform(-0.3, 0.3, (5, 30, 3))
    before, after = cameras.project(points, labels), cameras.project(points, moved_camera(labels, geometry))
    for i, (dx, dy, zoom, turn) in enumerate(geometry):
        centre = labels[i, [18, 21]]
        clockwise = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        expected = centre + [dx, dy] + zoom * (before[i] - centre) @ clockwise.T
        np.testing.assert_allclose(after[i], expected, atol=1e-9)
    cam2world, _ = cameras.unpack(moved_camera(labels, geometry))
    rotation = cam2world[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.tile(np.eye(3), (5, 1, 1)), atol=1e-9)
    turned = cameras.head_angles(moved_camera(labels, geometry)) - cameras.head_angles(labels)
    np.testing.assert_allclose(turned[:, 2], np.degrees(geometry[:, 3]), atol=1e-6)


def test_picture_landmarks_and_camera_move_together(tmp_path: Path, make_record: Make) -> None:
    """Dots are painted at the landmarks' places; after augmentation they still lie at the moved landmarks."""
    size = 64
    record = make_record("x", still=True, size=size)
    camera = record.camera.astype(np.float64)
    rng = np.random.default_rng(2)
    world = rng.uniform(-0.2, 0.2, (478, 3))
    landmarks = cameras.project(world[None], camera)
    update(
        tmp_path / "s",
        [Record("x", record.media, "png", record.expression, camera, landmarks, record.found, record.info)],
    )
    store = FrameStore.load(tmp_path / "s", size)
    y, x = np.mgrid[0:size, 0:size]
    spot = landmarks[0, 7] * size - 0.5
    dot = np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / (2 * 2.0**2))
    store.frames[:] = torch.from_numpy((dot * 255).round().astype(np.uint8))
    limits = Augment(shift=0.1, scale=0.2, roll_deg=30.0, colour_probability=0.0)
    batch = PairSampler(store, 0, mirror=True, augment=limits).batch(0, 24)
    mirror = landmark_mirror_map()
    for i in range(24):
        weight = (batch["driving"][i, 0].double().numpy() + 1).clip(0)
        weight[weight < 0.1] = 0
        centre = [(weight * (axis + 0.5)).sum() / weight.sum() / size for axis in (x, y)]
        label = batch["camera"][i].double().numpy()
        # Where the label is a mirrored one its world is, too: the dot's landmark is the partner of number 7.
        flips = np.linalg.norm(batch["landmarks"][i, mirror[7]].numpy() - centre) < 0.02
        number = mirror[7] if flips else 7
        point = world[7] * [-1, 1, 1] if flips else world[7]
        np.testing.assert_allclose(batch["landmarks"][i, number], centre, atol=0.01)
        np.testing.assert_allclose(cameras.project(point[None], label)[0], centre, atol=0.01)


@pytest.mark.parametrize("together", [0.0, 1.0])
def test_shoulders_are_where_they_are_in_the_moved_pictures(tmp_path: Path, make_record: Make, together: float) -> None:
    """Two landmarks stand for the shoulders and the neck; two others, 0.1 apart, show how far they turn and grow."""
    update(tmp_path / "s", [make_record("x", 9)])
    store = FrameStore.load(tmp_path / "s", 16)
    at, sure = torch.linspace(-0.1, 0.1, 9)[:, None] * torch.tensor([1.0, -0.5]), torch.linspace(0.5, 1.0, 9)[:, None]
    turn, size = torch.linspace(-0.3, 0.2, 9)[:, None], torch.linspace(0.1, -0.1, 9)[:, None]
    store.shoulders[:] = torch.cat([at, sure, turn, size], dim=1)
    places = store.landmarks.float()
    places[:, 1], places[:, 4] = 0.5 + at, 0.5
    places[:, 0], places[:, 2] = 0.5, 0.5 + 0.1 * size.exp() * torch.cat([turn.sin(), -turn.cos()], dim=1)
    limits = Augment(geometry_probability=1.0, together=together, scale=0.2, roll_deg=30.0)
    sampler = PairSampler(replace(store, landmarks=places), 0, augment=limits)
    batch = sampler.batch(0, 32)
    seen, before = (batch[name][:, 1] - batch[name][:, 4] for name in ("landmarks", "source_landmarks"))
    if together:
        torch.testing.assert_close(batch["shoulders"][:, :2], seen - before, atol=1e-5, rtol=0)
        assert (batch["shoulders"][:, 2] > 0.2).all()
        names = ("landmarks", "source_landmarks")
        (after_x, after_y), (x, y) = ((batch[name][:, 2] - batch[name][:, 0]).T for name in names)
        turned = torch.atan2(x * after_y - y * after_x, x * after_x + y * after_y)
        grown = torch.log(torch.hypot(after_x, after_y) / torch.hypot(x, y))
        torch.testing.assert_close(batch["shoulders"][:, 3:], torch.stack([turned, grown], dim=1), atol=1e-4, rtol=0)
    else:
        assert not batch["shoulders"][:, 2].any()
    assert landmark_mirror_map()[[0, 1, 2, 4]].tolist() == [0, 1, 2, 4]


def test_masks_move_with_their_pictures(tmp_path: Path, make_record: Make) -> None:
    update(tmp_path / "s", [make_record("x", 4)])
    store = FrameStore.load(tmp_path / "s", 64)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    spot = 255.0 * torch.exp(-((x - 20.0).square() + (y - 36.0).square()) / 200.0)
    store.frames[:] = spot.round().byte()
    assert "source_mask" not in PairSampler(store, 0).batch(0, 1)
    store = replace(store, masks=resize(store.frames[:, :1].float(), 32).round().byte())
    limits = Augment(geometry_probability=1.0, shift=0.1, scale=0.2, roll_deg=30.0, colour_probability=0.0)
    batch = PairSampler(store, 0, augment=limits).batch(0, 24)
    seen = resize((batch["source"][:, :1] + 1.0) / 2.0, 32)
    assert batch["source_mask"].shape == seen.shape
    assert (batch["source_mask"] - seen).abs().max() < 0.04
    assert (seen - seen[:1]).abs().max() > 0.3


def test_pixels_from_beyond_the_source_are_not_valid(tmp_path: Path, make_record: Make) -> None:
    """The valid part of the picture is painted white; it stays where `valid` says under every augmentation."""
    size = 64
    box = (0.0, 0.25, 0.75, 1.0)
    update(tmp_path / "s", [make_record("x", 4, inside=list(box))])
    store = FrameStore.load(tmp_path / "s", size)
    assert store.clips[0].inside == box
    store.frames[:] = 0
    store.frames[:, :, size // 4 :, : size * 3 // 4] = 255
    plain = PairSampler(store, 0, **PLAIN).batch(0, 4)
    assert torch.equal(plain["valid"], (plain["driving"][:, :1] > 0).float())
    limits = Augment(shift=0.1, scale=0.2, roll_deg=20.0, colour_probability=0.0)
    batch = PairSampler(store, 0, augment=limits).batch(0, 40)
    valid, white = batch["valid"][:, 0] > 0, batch["driving"][:, 0] > 0
    assert not (valid & ~white).sum() > 0.005 * valid.sum()
    # Where the move shows what lies beyond the crop, white may be repeated but is not valid.
    assert (white & ~valid).sum() > (valid & ~white).sum()
    assert 0.3 < valid.float().mean() < 0.6


def test_colours_change_alike_on_source_and_target(store: FrameStore) -> None:
    limits = Augment(shift=0.0, scale=0.0, roll_deg=0.0, colour_probability=1.0)
    sampler = PairSampler(store, 0, mirror=False, augment=limits, still_fraction=1.0)
    batch, plain = sampler.batch(0, 16), PairSampler(store, 0, still_fraction=1.0, **PLAIN).batch(0, 16)
    assert torch.equal(batch["source"], batch["driving"])
    assert (batch["source"] - plain["source"]).abs().mean() > 0.01


def test_without_augmentation_probabilities_nothing_changes_on_videos(store: FrameStore) -> None:
    limits = Augment(geometry_probability=0.0, colour_probability=0.0)
    batch = PairSampler(store, 0, mirror=False, augment=limits, still_fraction=0.0).batch(0, 8)
    plain = PairSampler(store, 0, still_fraction=0.0, **PLAIN).batch(0, 8)
    for name in KEYS:
        torch.testing.assert_close(batch[name], plain[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("still", "alike"), [(0.0, True), (1.0, False)])
def test_both_frames_of_a_clip_may_be_moved_alike_a_still_picture_never(
    store: FrameStore, still: float, alike: bool
) -> None:
    limits = Augment(geometry_probability=1.0, together=1.0, colour_probability=0.0)
    batch = PairSampler(store, 0, mirror=False, augment=limits, still_fraction=still).batch(0, 12)
    plain = PairSampler(store, 0, still_fraction=still, **PLAIN).batch(0, 12)
    moved = [
        cameras.unpack(batch[camera])[1] - cameras.unpack(plain[camera])[1] for camera in ("source_camera", "camera")
    ]
    assert moved[0].abs().amax(dim=(1, 2)).min() > 1e-4
    assert ((moved[0] - moved[1]).abs().max() < 1e-5) == alike


def test_settings_that_cannot_work_are_refused(store: FrameStore) -> None:
    from dataclasses import replace

    with pytest.raises(ConfigError, match="still_fraction"):
        PairSampler(store, 0, still_fraction=1.5)
    with pytest.raises(ConfigError, match="curriculum_images"):
        PairSampler(store, 0, curriculum_images=-1)
    with pytest.raises(ConfigError, match="mirror"):
        PairSampler(replace(store, space="bfm64"), 0)
    with pytest.raises(ConfigError, match="shared by 3"):
        PairSampler(store, 0).batch(0, 8, 0, 3)
    with pytest.raises(ConfigError, match="roll_deg"):
        Augment(roll_deg=-1.0)
    with pytest.raises(ConfigError, match="together"):
        Augment(together=1.5)
    with pytest.raises(InputError, match="no frame with a found face"):
        PairSampler(replace(store, found=torch.zeros_like(store.found)), 0)
