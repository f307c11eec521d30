"""AKD, CSIM, AED, APD, correlations: known numbers, drawn faces, and the bundled portrait made worse step by step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from export3d.camera import Camera, head_angles, head_position
from export3d.errors import ConfigError, ShapeError
from export3d.evaluation.measures import facial_motion
from export3d.evaluation.measures.face import FaceScorer, Movement, Reading
from export3d.face import pose
from export3d.face.crop import CropBox, crop
from export3d.face.landmark_sets import IBUG68
from export3d.face.landmarks import Face
from export3d.image import read_image
from export3d.motion.arkit import ARKIT52, with_scores
from export3d.motion.compare import pearson
from tests.drawn_faces import Drawn, drawn_face, drawn_landmarks, plain

Picture = np.ndarray


def drawn_scorer(faces: dict[int, list[Face]], **options: bool) -> FaceScorer:
    return FaceScorer(identities=(), landmarker=Drawn(faces, **options))


def test_a_reading_holds_pose_expression_and_points_of_the_picture() -> None:
    camera = Camera.orbit(yaw_deg=12.0, pitch_deg=-5.0)
    calm, face = drawn_face(camera), drawn_face(camera, jawOpen=0.3, eyeBlinkLeft=0.2)
    reading = drawn_scorer({1: [calm]}).read(plain(1))
    np.testing.assert_allclose(reading.angles_deg, [[12.0, -5.0, 0.0]], atol=0.01)
    np.testing.assert_allclose(reading.position, [[0.0, 0.0, 2.7]], atol=1e-3)
    reading = drawn_scorer({1: [face]}).read(plain(1))
    (label,), _ = pose.fit_cameras(face.landmarks[None, :, :2], 256, scores=face.scores[None])  # as the tracker fits it
    np.testing.assert_allclose(reading.angles_deg[0], head_angles(label), atol=1e-4)
    np.testing.assert_allclose(reading.position[0], head_position(label), atol=1e-5)
    np.testing.assert_allclose(reading.pose6[0, :3], np.radians(reading.angles_deg[0]))
    np.testing.assert_allclose(reading.curves, [[reading.angles_deg[0, 0], 0.3, 0.1]], atol=1e-4)
    assert abs(reading.angles_deg[0, 1] + 5.0) > 0.5
    np.testing.assert_allclose(reading.landmarks68[0], drawn_landmarks(camera)[list(IBUG68)], atol=1e-4)
    assert reading.expression.shape == (1, 52)
    assert reading.identity == {}


def test_a_face_beside_the_middle_is_beside_the_middle() -> None:
    """The position is that in the picture, not in a crop around the face."""
    face = drawn_face()
    moved = replace(face, landmarks=face.landmarks + np.float32([20.0, 0.0, 0.0]))
    reading = drawn_scorer({1: [face], 2: [moved]}).read(plain(1, 2))
    shift = reading.position[1] - reading.position[0]
    assert shift[0] == pytest.approx(20 / 256 / 4.2647 * 2.7, rel=0.05)
    there, here = (reading.at(np.array([t])) for t in (1, 0))
    scores = drawn_scorer({}).frame_scores(there, here, here)
    assert scores["akd"] == pytest.approx(20.0, abs=1e-4)
    assert scores["apd6"][0] > 0.005


def test_the_largest_face_counts_and_a_face_that_fills_the_picture_is_found() -> None:
    near, far = drawn_face(Camera.orbit(10.0)), drawn_face(Camera.orbit(-20.0, radius=6.0))
    reading = drawn_scorer({1: [near, far]}, only_within_a_margin=True).read(plain(1))
    assert reading.found.all()
    assert reading.angles_deg[0, 0] == pytest.approx(10.0, abs=0.1)


def test_a_missing_face_is_not_an_error_and_scores_nothing() -> None:
    with drawn_scorer({1: [drawn_face()]}) as scorer:
        reading, target = scorer.read(plain(1, 2, 1)), scorer.read(plain(1, 1, 2))
        scores = scorer.frame_scores(reading, target, target.at(np.array([0])))
        nothing = scorer.read(plain(2, 2))
        assert len(scorer.read([])) == 0
    assert reading.found.tolist() == [True, False, True]
    for name, values in scores.items():
        assert np.isnan(values).tolist() == [False, True, True], name
    assert not nothing.found.any()
    assert all(np.isnan(value).all() for value in (nothing.landmarks68, nothing.expression, nothing.position))


def test_identity_is_compared_with_the_source_whatever_the_target_shows() -> None:
    with FaceScorer(landmarker=Drawn({1: [drawn_face()]})) as scorer:
        seen, lost = scorer.read(plain(1, 1)), scorer.read(plain(2, 2))
        scores = scorer.frame_scores(seen, lost, seen.at(np.array([0])))
        np.testing.assert_allclose(scores["csim_dlib"], 1.0, atol=1e-5)
        assert np.isnan(scores["akd"]).all()
        assert np.isnan(scorer.frame_scores(seen, seen, lost.at(np.array([0])))["csim_dlib"]).all()
        each = scorer.frame_scores(seen, seen, scorer.read(plain(1, 2)))["csim_dlib"]
    assert np.isnan(each).tolist() == [False, True]


def test_equal_pictures_are_read_once() -> None:
    eyes = Drawn({1: [drawn_face()], 2: [drawn_face(Camera.orbit(9.0))]})
    reading = FaceScorer(identities=(), landmarker=eyes).read(plain(1, 1, 2, 1, 2))
    assert eyes.calls == 2
    np.testing.assert_allclose(reading.angles_deg[:, 0], [0, 0, 9, 0, 9], atol=0.01)


def test_pictures_of_other_sizes_are_read_at_256() -> None:
    reading = drawn_scorer({7: [drawn_face()]}).read(np.stack(plain(7, size=64)))
    np.testing.assert_allclose(reading.landmarks[0], drawn_landmarks(), atol=1e-4)


@pytest.mark.parametrize("shape", [(256, 255, 3), (256, 256), (256, 256, 4)])
def test_what_is_no_square_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="ours of a must be square"):
        drawn_scorer({}).read([np.zeros(shape, np.uint8)], "ours of a")
    with pytest.raises(ShapeError, match="float64"):
        drawn_scorer({}).read([np.zeros((256, 256, 3))])


def test_readings_of_different_lengths_are_refused() -> None:
    scorer = drawn_scorer({1: [drawn_face()]})
    one, two = scorer.read(plain(1)), scorer.read(plain(1, 1))
    with pytest.raises(ShapeError, match="2 predictions"):
        scorer.frame_scores(two, one, one)
    with pytest.raises(ShapeError):
        Movement().add(two, one)


def test_every_measure_is_given_and_in_order() -> None:
    eyes = Drawn({1: [drawn_face()]})
    with FaceScorer(landmarker=eyes) as scorer:
        reading = scorer.read(plain(1, 1, 1))
        scores = scorer.frame_scores(reading, reading, reading)
        names = [measure.name for measure in scorer.measures]
        frame_only = FaceScorer(landmarker=Drawn({}), motion=False)
        assert set(scorer.description) == {"landmarks", "identity", "expression and pose"}
    assert eyes.closed
    assert names == ["akd", "csim_dlib", "aed", "apd", "apd6", "yaw", "jawOpen", "eyeBlink", "found"]
    assert names == [*scores, *Movement().result()]
    assert [measure.name for measure in frame_only.measures] == list(scores)
    better = {measure.name: measure.higher_is_better for measure in scorer.measures}
    assert [name for name, higher in better.items() if not higher] == ["akd", "aed", "apd", "apd6"]


def moving(yaw: np.ndarray, jaw: np.ndarray, blink: np.ndarray) -> Reading:
    """A reading in which only the curves mean anything; NaN in yaw is a lost face."""
    count, lost = len(yaw), np.isnan(yaw)
    scores = np.zeros((count, 52))
    scores[:, ARKIT52.index("jawOpen")] = jaw
    scores[:, ARKIT52.index("eyeBlinkLeft")], scores[:, ARKIT52.index("eyeBlinkRight")] = 1.5 * blink, 0.5 * blink
    scores[lost] = np.nan
    angles = np.stack([yaw, np.zeros(count), np.zeros(count)], axis=1)
    points = np.zeros((count, 68, 2))
    return Reading(~lost, points, np.zeros((count, 478, 2)), scores, angles, np.zeros((count, 3)), scores, {})


def test_correlations_are_those_of_the_whole_clip_whatever_the_chunks(rng: np.random.Generator) -> None:
    ours, theirs = rng.normal(size=(2, 3, 50))
    theirs += ours
    whole, parts = Movement(), Movement()
    whole.add(moving(*ours), moving(*theirs))
    for start in range(0, 50, 7):
        part = slice(start, start + 7)
        parts.add(moving(*ours[:, part]), moving(*theirs[:, part]))
    assert whole.result() == parts.result()
    for i, name in enumerate(("yaw", "jawOpen", "eyeBlink")):
        assert whole.result()[name] == pytest.approx(pearson(ours[i], theirs[i]))


def test_correlations_fall_as_the_prediction_follows_less(rng: np.random.Generator) -> None:
    theirs, noise = rng.normal(size=(2, 3, 200))
    found = []
    for share in (0.0, 0.3, 1.0, 3.0):
        movement = Movement()
        movement.add(moving(*(theirs + share * noise)), moving(*theirs))
        found.append(movement.result())
    for name in ("yaw", "jawOpen", "eyeBlink"):
        values = [result[name] for result in found]
        assert values[0] == pytest.approx(1.0)
        assert values == sorted(values, reverse=True)
        assert values[-1] < 0.5
    opposite = Movement()
    opposite.add(moving(*-theirs), moving(*theirs))
    assert opposite.result()["yaw"] == pytest.approx(-1.0)


def test_lost_faces_do_not_enter_and_are_counted(rng: np.random.Generator) -> None:
    ours, theirs = rng.normal(size=(2, 3, 12))
    ours[0, :3] = np.nan
    theirs[0, 10:] = np.nan
    movement = Movement()
    movement.add(moving(*ours), moving(*theirs))
    result = movement.result()
    assert result["found"] == pytest.approx(7 / 10)
    assert result["jawOpen"] == pytest.approx(pearson(ours[1, 3:10], theirs[1, 3:10]))


def test_what_says_nothing_is_not_defined(rng: np.random.Generator) -> None:
    assert all(math.isnan(value) for value in Movement().result().values())
    two = Movement()
    two.add(moving(*rng.normal(size=(3, 2))), moving(*rng.normal(size=(3, 2))))
    assert math.isnan(two.result()["yaw"])
    assert two.result()["found"] == 1.0
    still = Movement()
    still.add(moving(*np.ones((3, 9))), moving(*rng.normal(size=(3, 9))))
    assert math.isnan(still.result()["yaw"])


@pytest.fixture(scope="module")
def scorer() -> Iterator[FaceScorer]:
    pytest.importorskip("mediapipe", exc_type=ImportError)
    with FaceScorer() as opened:
        yield opened


@pytest.fixture(scope="module")
def portrait(astronaut_path: Path) -> Picture:
    """The bundled portrait's face at 256."""
    return crop(read_image(astronaut_path), CropBox((224.0, 128.0), 256.0))


def scored(scorer: FaceScorer, pictures: list[Picture]) -> dict[str, list[float]]:
    """Scores of pictures whose first one is source and target."""
    reading = scorer.read(pictures)
    first = reading.at(np.zeros(len(pictures), dtype=np.int64))
    return {name: values.tolist() for name, values in scorer.frame_scores(reading, first, first).items()}


def rises(values: list[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))


def test_equal_pictures_score_nothing_and_one(scorer: FaceScorer, portrait: Picture) -> None:
    first = scorer.read([portrait])
    again = scorer.read([portrait.copy(), np.ascontiguousarray(portrait[:, ::-1])]).at(np.array([0]))
    scores = scorer.frame_scores(again, first, first)
    assert {name: float(values[0]) for name, values in scores.items()} == {
        "akd": 0.0, "csim_dlib": pytest.approx(1.0, abs=1e-5), "aed": 0.0,
        # some processors round differently in a batch
        "apd": pytest.approx(0.0, abs=1e-8), "apd6": pytest.approx(0.0, abs=1e-8),
    }  # fmt: skip


def test_a_reading_does_not_depend_on_its_neighbours(scorer: FaceScorer, portrait: Picture) -> None:
    pictures = [np.roll(portrait, shift, axis=1) for shift in (0, 4, 9)]
    together = scorer.read(pictures)
    for t, picture in enumerate(pictures):
        alone = scorer.read([picture])
        np.testing.assert_array_equal(alone.landmarks[0], together.landmarks[t])
        np.testing.assert_allclose(alone.pose6[0], together.pose6[t], atol=1e-9)
        np.testing.assert_array_equal(alone.expression[0], together.expression[t])
        np.testing.assert_allclose(alone.identity["dlib"][0], together.identity["dlib"][t], atol=1e-5)
    assert scorer.read(pictures[:1], identity=False).identity == {}


def test_a_shifted_face_is_that_far_away(scorer: FaceScorer, portrait: Picture) -> None:
    shifts = (0, 2, 5, 10, 20)
    scores = scored(scorer, [np.roll(portrait, shift, axis=1) for shift in shifts])
    np.testing.assert_allclose(scores["akd"], shifts, atol=1.0)
    assert rises(scores["akd"])
    assert min(scores["csim_dlib"]) > 0.99
    assert rises([scores["apd6"][i] for i in (0, 3, 4)])
    assert max(scores["apd"]) < 2.0


def test_blur_moves_every_measure_until_there_is_no_face(scorer: FaceScorer, portrait: Picture) -> None:
    image = Image.fromarray(portrait)
    pictures = [np.asarray(image.filter(ImageFilter.GaussianBlur(sigma))) for sigma in (0, 1, 3, 5, 16)]
    scores = scored(scorer, pictures)
    for name, values in scores.items():
        *seen, lost = values
        assert rises(seen[::-1] if name == "csim_dlib" else seen), name
        assert math.isnan(lost), name
    movement, reading = Movement(), scorer.read(pictures)
    movement.add(reading, reading.at(np.zeros(5, dtype=np.int64)))
    assert movement.result()["found"] == pytest.approx(0.8)


def test_another_face_shape_costs_identity(scorer: FaceScorer, portrait: Picture) -> None:
    image, wider = Image.fromarray(portrait), (1.0, 1.1, 1.2, 1.35, 1.5)
    rows = [(1 / w, 0, 128 - 128 / w, 0, 1, 0) for w in wider]
    pictures = [np.asarray(image.transform((256, 256), Image.Transform.AFFINE, row, Image.Resampling.BICUBIC))
                for row in rows]  # fmt: skip
    scores = scored(scorer, pictures)
    assert rises(scores["csim_dlib"][::-1])
    assert rises(scores["akd"])


def test_a_stranger_costs_more_identity_than_another_picture_of_oneself(scorer: FaceScorer, shared_data: Path) -> None:
    """Two pictures each of three people, made to one size by where the face is."""
    pictures, people = [], []
    for path in sorted((shared_data / "portraits").glob("*_02.jpg"))[:3]:
        for name in (path, path.with_name(path.name.replace("_02", "_01"))):
            picture = read_image(name)
            side = min(picture.shape[:2])
            middle = (picture.shape[1] / 2, picture.shape[0] / 2)
            pictures.append(crop(picture, CropBox(middle, side)))
            people.append(path.stem[:5])
    reading = scorer.read(pictures)
    assert reading.found.all()
    same, other = [], []
    for i in range(len(pictures)):
        source = reading.at(np.array([i]))
        cosines = scorer.frame_scores(reading, reading, source)["csim_dlib"]
        same += [c for j, c in enumerate(cosines) if j != i and people[j] == people[i]]
        other += [c for j, c in enumerate(cosines) if people[j] != people[i]]
    assert len(same) == 6
    assert min(same) > max(other)


@pytest.fixture(scope="module")
def rendered(astronaut_path: Path) -> dict[str, list[Picture]]:
    """The packaged model's portrait with an ever more open mouth, and turned ever further."""
    from export3d.animate.animator import Animator

    animator = Animator.from_pretrained(device="cpu")
    source = animator.encode(astronaut_path)
    still = animator.render(source, source.expression, Camera.orbit().label)
    opened = [with_scores(source.expression, {"jawOpen": jaw}) for jaw in (0.5, 1.0)]
    turned = [Camera.orbit(yaw_deg=yaw).label for yaw in (10.0, 25.0)]
    return {
        "jaw": [still, *(animator.render(source, expression, Camera.orbit().label) for expression in opened)],
        "yaw": [still, *(animator.render(source, source.expression, camera) for camera in turned)],
    }


@pytest.mark.slow
def test_a_wrong_expression_costs_aed_and_akd(scorer: FaceScorer, rendered: dict[str, list[Picture]]) -> None:
    scores = scored(scorer, rendered["jaw"])
    assert rises(scores["aed"])
    assert rises(scores["akd"])
    assert scores["apd"][-1] < 3.0  # the head is still, but a fitted pitch follows a jaw (docs/sliders.md)
    reading = scorer.read(rendered["jaw"])
    assert rises(reading.curves[:, 1].tolist())
    gap = facial_motion.CURVES.index("lip_gap")
    assert rises(facial_motion.curves(reading.landmarks, reading.scores)[:, gap].tolist())


@pytest.mark.slow
def test_a_wrong_pose_costs_apd_and_akd(scorer: FaceScorer, rendered: dict[str, list[Picture]]) -> None:
    scores = scored(scorer, rendered["yaw"])
    assert rises(scores["apd"])
    assert rises(scores["apd6"])
    assert rises(scores["akd"])
    assert scores["apd"][-1] > 5.0
    assert rises(scorer.read(rendered["yaw"]).curves[:, 0].tolist())


def test_two_descriptors_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two identity descriptors"):
        FaceScorer(identities=("dlib", "dlib"), landmarker=Drawn({}))
