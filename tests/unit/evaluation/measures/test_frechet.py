"""The Fréchet distance against SciPy and closed forms, its moments, its features, and which way it moves."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, max_pool2d

from export3d.errors import CheckpointError, ConfigError, ShapeError
from export3d.evaluation.measures.frechet import Moments, frechet_distance, load_features, sample_rows
from export3d.face.identity import DlibIdentity
from export3d.image import read_image, resize, to_tensor, to_uint8


def moments(rows: np.ndarray | Tensor) -> Moments:
    out = Moments(rows.shape[1])
    out.add(rows)
    return out


def vectors(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
    """Correlated, with a mean."""
    mixing = rng.normal(size=(length, length)) / math.sqrt(length)
    return rng.normal(size=(count, length)) @ mixing + rng.normal(size=length)


def worse(image: Tensor, step: int) -> Tensor:
    """(B, 3, H, W) shrunk by powers of two and enlarged again: step 0 is the image itself."""
    small = resize(image, image.shape[-1] // 2**step)
    return interpolate(small, image.shape[-2:], mode="bilinear", align_corners=False)


# --- the distance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "length"), [(300, 5), (600, 64), (40, 64)], ids=["few", "many", "singular"])
def test_it_agrees_with_a_matrix_root(rng: np.random.Generator, count: int, length: int) -> None:
    """SciPy's root of a product is exact to half the digits where the product is singular."""
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    x, y = vectors(rng, count, length), vectors(rng, count, length)
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.trace(sqrtm(cx @ cy)).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(cx) + np.trace(cy) - 2 * root
    tolerance = 1e-10 if count > length else 1e-6
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected, rel=tolerance)


def test_in_one_dimension_it_is_the_textbook_formula(rng: np.random.Generator) -> None:
    x, y = rng.normal(2.0, 3.0, size=(50, 1)), rng.normal(-1.0, 0.5, size=(70, 1))
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [500, 20], ids=["full rank", "singular"])
def test_equal_moments_are_no_distance_apart(rng: np.random.Generator, count: int) -> None:
    x = vectors(rng, count, 40)
    assert frechet_distance(moments(x), moments(x)) == pytest.approx(0.0, abs=1e-12)
    assert frechet_distance(moments(x), moments(x[::-1])) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("count", [500, 20], ids=["full rank", "singular"])
def test_a_shift_costs_its_square_and_a_scale_its_share_of_the_variance(rng: np.random.Generator, count: int) -> None:
    x, away = vectors(rng, count, 40), rng.normal(size=40)
    assert frechet_distance(moments(x), moments(x + away)) == pytest.approx(away @ away, rel=1e-10)
    centred = x - x.mean(0)
    expected = 0.5**2 * np.trace(np.cov(x, rowvar=False))
    assert frechet_distance(moments(centred), moments(1.5 * centred)) == pytest.approx(expected, rel=1e-10)


def test_disjoint_subspaces_share_nothing(rng: np.random.Generator) -> None:
    """Where every direction belongs to one side only, the root is zero and the variances add up."""
    x, y = np.zeros((30, 40)), np.zeros((30, 40))
    x[:, :20], y[:, 20:] = rng.normal(size=(30, 20)), rng.normal(size=(30, 20))
    x, y = x - x.mean(0), y - y.mean(0)
    turn = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    expected = np.trace(np.cov(x, rowvar=False)) + np.trace(np.cov(y, rowvar=False))
    assert frechet_distance(moments(x @ turn), moments(y @ turn)) == pytest.approx(expected, rel=1e-7)


def test_it_is_symmetric_and_knows_no_axes(rng: np.random.Generator) -> None:
    x, y = vectors(rng, 30, 40), vectors(rng, 90, 40)
    there = frechet_distance(moments(x), moments(y))
    turn = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    assert there > 0
    assert frechet_distance(moments(y), moments(x)) == pytest.approx(there, rel=1e-9)
    assert frechet_distance(moments(x @ turn), moments(y @ turn)) == pytest.approx(there, rel=1e-7)


def test_few_vectors_of_one_distribution_seem_apart_by_about_one_over_their_number(rng: np.random.Generator) -> None:
    def by_chance(count: int) -> float:
        return np.mean([frechet_distance(*(moments(rng.normal(size=(count, 16))) for _ in "ab")) for _ in range(20)])

    few, some, many = (by_chance(count) for count in (100, 400, 1600))
    assert few / some == pytest.approx(4.0, rel=0.25)
    assert some / many == pytest.approx(4.0, rel=0.25)


def test_fewer_than_two_vectors_have_no_distance(rng: np.random.Generator) -> None:
    enough = moments(rng.normal(size=(9, 4)))
    for count in (0, 1):
        few = moments(rng.normal(size=(count, 4)))
        assert math.isnan(frechet_distance(few, enough))
        assert math.isnan(frechet_distance(enough, few))


# --- moments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(60,), (1, 1, 58), (20, 0, 40), (1,) * 60])
def test_moments_of_parts_are_those_of_the_whole(rng: np.random.Generator, sizes: tuple[int, ...]) -> None:
    rows = vectors(rng, 60, 7)
    found = Moments(7)
    for part in np.split(rows, np.cumsum(sizes)[:-1]):
        found.add(part)
    assert found.count == 60
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-10, atol=1e-12)


def test_a_large_mean_costs_no_digits(rng: np.random.Generator) -> None:
    """The mean of the squares less the square of the mean would keep none here."""
    rows = rng.normal(size=(400, 3))
    found = Moments(3)
    for part in np.split(rows + 1e8, 8):
        found.add(part)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-5, atol=1e-6)


def test_float32_tensors_are_summed_in_float64() -> None:
    rows = torch.randn(500, 6) + 1000.0
    found = moments(rows)
    np.testing.assert_allclose(found.covariance, np.cov(rows.double().numpy(), rowvar=False), rtol=1e-9)


def test_moments_of_processes_can_be_merged(rng: np.random.Generator) -> None:
    rows = vectors(rng, 50, 7)
    first, second = moments(rows[:13]), moments(rows[13:])
    before = second.mean.copy()
    first.merge(second)
    first.merge(Moments(7))
    second.add(rows)
    assert first.count == 50
    np.testing.assert_allclose(first.covariance, np.cov(rows, rowvar=False), rtol=1e-10, atol=1e-12)
    assert not np.array_equal(before, second.mean)


def test_vectors_that_do_not_fit_are_refused() -> None:
    found = Moments(4)
    with pytest.raises(ShapeError, match="features"):
        found.add(np.zeros((3, 5)))
    with pytest.raises(ShapeError, match="finite"):
        found.add(np.array([[0.0, np.nan, 0.0, 0.0]]))
    with pytest.raises(ShapeError, match="mean"):
        found.merge(Moments(5))
    with pytest.raises(ShapeError, match="mean"):
        frechet_distance(found, Moments(5))
    assert found.count == 0


# --- which frames -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 31, 32, 33, 47, 64, 100, 1001])
def test_rows_are_spread_over_the_clip_and_never_taken_twice(count: int) -> None:
    rows = sample_rows(count)
    assert len(rows) == min(count, 32)
    assert (np.diff(rows) > 0).all()
    if count:
        assert rows[0] == 0
        assert rows[-1] == count - 1
        assert np.ptp(np.diff(rows)) <= 1 if count > 1 else True


def test_one_row_is_the_first_and_none_are_refused() -> None:
    assert sample_rows(10, 1).tolist() == [0]
    for count, most in ((-1, 4), (10, 0)):
        with pytest.raises(ConfigError, match="frames"):
            sample_rows(count, most)


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_are_the_last_activation_averaged_over_positions(alex_file: Path) -> None:
    from safetensors.torch import load_file

    w = load_file(alex_file)
    images = torch.rand(3, 3, 80, 64) * 2 - 1
    x = (images - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(
        3, 1, 1
    )
    x = max_pool2d(conv2d(x, w["0.weight"], w["0.bias"], stride=4, padding=2).relu(), 3, 2)
    x = max_pool2d(conv2d(x, w["3.weight"], w["3.bias"], padding=2).relu(), 3, 2)
    for layer in (6, 8, 10):
        x = conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"], padding=1).relu()
    found = load_features("alex", alex_file)(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, x.mean(dim=(2, 3)), rtol=1e-4, atol=1e-6)


def test_features_do_not_depend_on_the_batch(alex_file: Path) -> None:
    features = load_features("alex", alex_file)
    images = torch.rand(11, 3, 64, 64) * 2 - 1
    alone = torch.cat([features(image[None]) for image in images])
    torch.testing.assert_close(features(images), alone, rtol=1e-4, atol=1e-6)
    assert features(images[:0]).shape == (0, 256)


def test_features_say_what_they_are(alex_file: Path) -> None:
    features, packaged = load_features("alex", alex_file), load_features()
    assert (features.name, packaged.name) == ("alex", "dlib")
    assert alex_file.name in features.description
    assert features.measure.name == "frechet_alex"
    assert features.measure.higher_is_better is False
    assert packaged.measure.name == "frechet_dlib"
    assert DlibIdentity.description in packaged.measure.definition


def test_features_that_cannot_be_had_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"inception.*dlib, alex, squeeze, vgg16"):
        load_features("inception")
    with pytest.raises(CheckpointError, match=r"nowhere\.pth"):
        load_features("alex", tmp_path / "nowhere.pth")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ConfigError, match=r"--backbone-file.*torchvision.*dlib"):
        load_features("alex")
    with pytest.raises(ConfigError, match="identity"):
        load_features()(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ShapeError, match="images"):
        load_features()(torch.zeros(3, 64, 64))


# --- which way it moves -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def turning(astronaut_turns: list[np.ndarray]) -> Tensor:
    """(24, 3, 128, 128): the bundled portrait tilts its head."""
    return resize(to_tensor(np.stack(astronaut_turns)), 128).clamp(-1, 1)


def test_it_grows_as_pictures_lose_detail_or_gain_noise(turning: Tensor, shared_models: Path) -> None:
    features = load_features("alex", shared_models / "lpips" / "alexnet_features_fp16.pth")
    truth = moments(features(turning))
    noise = torch.randn_like(turning)
    coarse = [frechet_distance(moments(features(worse(turning, step))), truth) for step in range(4)]
    noisy = [
        frechet_distance(moments(features((turning + s * noise).clamp(-1, 1))), truth) for s in (0, 0.05, 0.2, 0.8)
    ]
    for values in (coarse, noisy):
        assert values[0] == pytest.approx(0.0, abs=1e-6)
        assert all(second > 1.2 * first + 1e-3 for first, second in itertools.pairwise(values))


@pytest.mark.slow
def test_identity_vectors_move_away_as_faces_fade(astronaut_turns: list[np.ndarray]) -> None:
    pytest.importorskip("mediapipe")
    from export3d.face.landmarks import FaceLandmarker

    with FaceLandmarker() as landmarker:
        landmarks = np.stack([landmarker.detect(picture)[0].landmarks[:, :2] for picture in astronaut_turns])
    who, pictures = DlibIdentity(), to_tensor(np.stack(astronaut_turns))
    truth = moments(who.many(astronaut_turns, landmarks))
    values = [
        frechet_distance(moments(who.many(list(to_uint8(worse(pictures, step).clamp(-1, 1))), landmarks)), truth)
        for step in (0, 1, 2, 3, 4)
    ]
    assert values[0] == pytest.approx(0.0, abs=1e-9)
    assert all(second > 1.2 * first + 1e-5 for first, second in itertools.pairwise(values))


@pytest.mark.slow
def test_other_people_are_farther_than_the_same_in_noise(shared_data: Path) -> None:
    pytest.importorskip("mediapipe")
    from export3d.face.landmarks import FaceLandmarker

    who, rng = DlibIdentity(), np.random.default_rng(0)
    people: dict[str, Path] = {}
    for path in sorted((shared_data / "portraits").iterdir()):
        people.setdefault(path.stem.split("_")[0], path)
    clean, noisy = [], []
    with FaceLandmarker() as landmarker:
        for path in list(people.values())[:24]:
            picture = to_uint8(resize(to_tensor(read_image(path)), 256))
            faces = landmarker.detect(picture)
            if faces:
                disturbed = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
                clean.append(who(picture, faces[0].landmarks[:, :2]))
                noisy.append(who(disturbed, faces[0].landmarks[:, :2]))
    half = len(clean) // 2
    assert half >= 8
    truth = moments(np.stack(clean[:half]))
    same, others = (frechet_distance(moments(np.stack(rows)), truth) for rows in (noisy[:half], clean[half:]))
    assert 0 < 3 * same < others
