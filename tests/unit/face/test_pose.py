"""Head pose: landmarks to cameras and back."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save

import export3d.camera as camera
from export3d.errors import Export3DError, ShapeError
from export3d.face import pose
from export3d.face.crop import crop, crop_box
from export3d.face.mesh import canonical_mesh
from export3d.face.morphable import MorphableFace
from export3d.face.repose import Puppet
from export3d.motion.arkit import ARKIT52, ARKIT52_MIRRORED


def random_cameras(rng, count):
    angles = np.stack([rng.uniform(-a, a, count) for a in (60, 40, 180)], axis=1)
    distance = rng.uniform(2.0, 4.0, count)
    middle = rng.uniform(-0.04, 0.04, (count, 2))
    return camera.from_pose(angles, np.concatenate([middle, np.ones((count, 1))], axis=1) * distance[:, None])


def seen(labels, size=256.0, vertices=None):
    vertices = canonical_mesh().vertices if vertices is None else vertices
    return pose.project(np.broadcast_to(vertices, (len(labels), *vertices.shape)), labels, size)


@pytest.fixture
def portrait(landmarker, astronaut):
    """Landmarks of the astronaut, in pixels of her crop at 256."""
    points = landmarker.detect(astronaut)[0].landmarks[:, :2]
    return crop_box(points).to_crop(points)


def test_cameras_are_recovered_from_their_own_projections(rng):
    labels = random_cameras(rng, 200)
    fitted, distance = pose.fit_cameras(seen(labels), 256)
    np.testing.assert_allclose(fitted, labels, atol=1e-6)
    assert distance.max() < 1e-4


def test_the_size_of_the_crop_does_not_matter(rng):
    labels = random_cameras(rng, 5)
    np.testing.assert_allclose(
        pose.fit_cameras(seen(labels, 512), 512)[0], pose.fit_cameras(seen(labels, 64), 64)[0], atol=1e-6
    )


def test_the_fit_is_as_good_as_opencvs(rng):
    """Reference: SQPNP refined by Levenberg-Marquardt, which knows no weights, so ours gets equal ones."""
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    mesh = canonical_mesh()
    points = mesh.vertices[mesh.pose_landmarks]
    image = seen(random_cameras(rng, 20), vertices=points) + rng.normal(0, 1.5, (20, 33, 2))
    plane = (image / 256 - 0.5) / camera.FOCAL
    rotation, translation = pose.solve(points, plane, np.full(33, 1 / 33))
    for k in range(20):
        _, turn, shift = cv2.solvePnP(points, plane[k], np.eye(3), None, flags=cv2.SOLVEPNP_SQPNP)
        turn, shift = cv2.solvePnPRefineLM(points, plane[k], np.eye(3), None, turn, shift)
        np.testing.assert_allclose(rotation[k], cv2.Rodrigues(turn)[0], atol=2e-4)
        np.testing.assert_allclose(translation[k], shift[:, 0], atol=2e-3)


def test_the_pieces_of_a_clip_do_not_show(portrait, rng, monkeypatch):
    """The same bits however many frames are fitted at once, and from the pose landmarks alone."""
    landmarks = portrait + rng.normal(0.0, 1.5, (300, 1, 2)) + rng.normal(0.0, 0.5, (300, 478, 2))
    labels, distance = pose.fit_cameras(landmarks, 256)
    for piece in (7, 100, 300):
        monkeypatch.setattr(pose, "_PIECE", piece)
        some = pose.fit_cameras(landmarks[:, canonical_mesh().pose_landmarks], 256)
        np.testing.assert_array_equal(some[0], labels)
        np.testing.assert_array_equal(some[1], distance)
    monkeypatch.setattr(pose, "_PIECE", 7)
    assert [len(range(*piece.indices(16))) for piece in pose.pieces(16)] == [5, 6, 5]


def test_the_canonical_mesh_lands_on_the_landmarks(portrait):
    """The calibration: on a real face at 256 the average face misses by the difference between two people's faces."""
    (label,), (distance,) = pose.fit_cameras(portrait[None], 256)
    mesh = canonical_mesh()
    miss = np.linalg.norm(pose.project(mesh.vertices, label, 256) - portrait[:468], axis=-1)
    assert distance == pytest.approx(miss[mesh.pose_landmarks].mean(), rel=1e-5)
    assert distance < 4.0
    assert miss.mean() < 5.0
    assert np.median(miss) < 4.0


def test_a_portrait_camera_stands_where_portrait_cameras_stand(portrait):
    (label,), _ = pose.fit_cameras(portrait[None], 256)
    yaw, pitch, roll = camera.head_angles(label)
    assert abs(yaw) < 5
    assert abs(pitch) < 20
    assert abs(roll) < 8
    assert 2.3 < camera.head_position(label)[2] < 3.0
    np.testing.assert_allclose(label[16:], camera.default_intrinsics().ravel())


def test_the_mirror_image_has_the_mirrored_camera(landmarker, astronaut):
    flipped = np.ascontiguousarray(astronaut[:, ::-1])
    labels = []
    for image in (astronaut, flipped):
        points = landmarker.detect(image)[0].landmarks[:, :2]
        labels.append(pose.fit_cameras(crop_box(points).to_crop(points)[None], 256)[0][0])
    one, other = camera.head_angles(camera.mirror(labels[0])), camera.head_angles(labels[1])
    np.testing.assert_allclose(one, other, atol=2.0)  # the detector is not exactly symmetric


def test_turning_the_picture_clockwise_adds_to_the_roll(portrait):
    turned = np.stack([256 - portrait[:, 1], portrait[:, 0]], axis=1)
    before, after = camera.head_angles(pose.fit_cameras(np.stack([portrait, turned]), 256)[0])
    np.testing.assert_allclose(after - before, [0, 0, 90], atol=1e-3)


def test_positive_yaw_points_the_nose_to_the_right_of_the_image():
    nose, left_ear, right_ear = 4, 454, 234
    for yaw in (-30.0, 30.0):
        points = seen(camera.from_pose(np.array([[yaw, 0, 0]]), np.array([[0, 0, 2.7]])))[0]
        offset = points[nose, 0] - (points[left_ear, 0] + points[right_ear, 0]) / 2
        assert offset * yaw > 0


def test_positive_pitch_raises_the_nose():
    nose, left_ear, right_ear = 4, 454, 234
    heights = []
    for pitch in (-20.0, 20.0):
        points = seen(camera.from_pose(np.array([[0, pitch, 0]]), np.array([[0, 0, 2.7]])))[0]
        heights.append(points[nose, 1] - (points[left_ear, 1] + points[right_ear, 1]) / 2)
    assert heights[1] < heights[0]


def test_reprojection_measures_the_mean_distance(rng):
    labels = random_cameras(rng, 4)
    shifted = seen(labels) + np.array([3.0, 4.0])
    np.testing.assert_allclose(pose.reprojection(shifted, labels, 256), 5.0)


def test_a_persons_shape_is_found_from_a_turning_head(rng):
    mesh = canonical_mesh()
    own = mesh.vertices.copy()
    own[mesh.pose_landmarks] += rng.normal(0, 0.3 * camera.UNITS_PER_CM, (33, 3))
    angles = np.stack([np.linspace(-30, 30, 40), 10 * np.sin(np.arange(40.0)), np.zeros(40)], axis=1)
    landmarks = seen(camera.from_pose(angles, np.tile([0.0, 0.0, 2.7], (40, 1))), vertices=own)
    canonical, without = pose.fit_cameras(landmarks, 256)
    labels, _ = pose.fit_cameras(landmarks, 256, pose.person_shape(landmarks, 256))
    distance = pose.reprojection(landmarks, labels, 256, pose.person_shape(landmarks, 256, labels))
    assert np.median(without) > 1.0
    assert distance.max() < 0.2
    wrong, less_wrong = (np.ptp(camera.head_angles(found) - angles, axis=0).max() for found in (canonical, labels))
    assert less_wrong < 0.7 * wrong  # a constant remains: nobody can tell which way a face is "straight"


def test_the_average_face_is_its_own_shape(rng):
    mesh = canonical_mesh()
    landmarks = seen(random_cameras(rng, 12))
    np.testing.assert_allclose(pose.person_shape(landmarks, 256), mesh.vertices, atol=1e-6)


def test_cameras_that_are_known_leave_only_the_shape_to_be_found(rng):
    mesh = canonical_mesh()
    own = mesh.vertices.copy()
    own[mesh.pose_landmarks] += rng.normal(0, 0.2 * camera.UNITS_PER_CM, (33, 3))
    labels = random_cameras(rng, 40)
    landmarks = seen(labels, vertices=own)
    found = pose.person_shape(landmarks, 256, labels)
    assert pose.reprojection(landmarks, labels, 256, found).max() < 0.1
    assert np.abs(found - own)[mesh.pose_landmarks].max() < 0.05 * camera.UNITS_PER_CM


def test_a_turn_of_a_face_that_is_not_average_is_kept(rng):
    """What the landmarks have taken off follows expressions, not turns: these faces only turn."""
    mesh = canonical_mesh()
    vertices = mesh.vertices + 0.15 * camera.UNITS_PER_CM * smooth_field(mesh, rng)
    for axis, most in ((0, 25.0), (1, 15.0), (2, 20.0)):
        angles = np.zeros((11, 3))
        angles[:, axis] = np.linspace(-most, most, 11)
        labels, _ = pose.still_cameras(
            seen(camera.from_pose(angles, np.tile([0, 0, 2.7], (11, 1))), vertices=vertices), 256
        )
        found = camera.head_angles(labels)[:, axis]
        assert np.polyfit(angles[:, axis], found, 1)[0] == pytest.approx(1.0, abs=0.08)


def smooth_field(mesh, rng):
    """(468, 3) of standard deviation 1 that varies slowly over the face."""
    waves = rng.normal(0, 0.5, (3, 8))
    field = np.sin(mesh.vertices_cm @ waves + rng.uniform(0, 6, 8)) @ rng.normal(0, 1, (8, 3))
    return field / field.std()


@pytest.mark.parametrize("fit", [pose.fit_cameras, pose.still_cameras])
def test_mirrored_landmarks_have_the_mirrored_camera(rng, fit):
    mesh = canonical_mesh()
    twin = np.linalg.norm((mesh.vertices * [-1, 1, 1])[:, None] - mesh.vertices, axis=2).argmin(1)
    landmarks = seen(random_cameras(rng, 20)) + rng.normal(0, 1.5, (20, 468, 2))
    labels, _ = fit(landmarks, 256)
    mirrored, _ = fit(landmarks[:, twin] * [-1, 1] + [256, 0], 256)
    np.testing.assert_allclose(camera.mirror(mirrored), labels, atol=2e-3)


def test_mirrored_scores_have_their_share_taken_off_in_mirror_image(rng):
    mesh = canonical_mesh()
    twin = np.linalg.norm((mesh.vertices * [-1, 1, 1])[:, None] - mesh.vertices, axis=2).argmin(1)
    landmarks, scores = seen(random_cameras(rng, 20)), rng.uniform(0, 1, (20, 52))
    labels, _ = pose.fit_cameras(landmarks, 256, scores=scores)
    mirrored, _ = pose.fit_cameras(
        landmarks[:, twin] * [-1, 1] + [256, 0], 256, scores=scores[:, list(ARKIT52_MIRRORED)]
    )
    assert np.abs(labels - pose.fit_cameras(landmarks, 256)[0]).max() > 0.02
    np.testing.assert_allclose(camera.mirror(mirrored), labels, atol=1e-6)


def test_without_scores_the_fit_is_that_of_the_33_landmarks(rng):
    mesh = canonical_mesh()
    landmarks = seen(random_cameras(rng, 5)) + rng.normal(0, 1.5, (5, 468, 2))
    plain, distance = pose.fit_cameras(landmarks, 256)
    image = (landmarks[:, mesh.pose_landmarks] / 256 - 0.5) / camera.FOCAL
    rotation, translation = pose.solve(mesh.vertices[mesh.pose_landmarks], image, mesh.pose_weights)
    for label, turn, shift in zip(plain, rotation, translation):
        found = pose_of(label)
        np.testing.assert_allclose(found[0], turn, atol=1e-6)
        np.testing.assert_allclose(found[1], shift, atol=1e-6)
    np.testing.assert_allclose(distance, pose.reprojection(landmarks, plain, 256), rtol=1e-9)
    for scores in (np.zeros((5, 52)), np.eye(52)[[ARKIT52.index("tongueOut")] * 5]):  # never seen: no share
        np.testing.assert_array_equal(pose.fit_cameras(landmarks, 256, scores=scores)[0], plain)


def test_the_share_of_the_scores_is_taken_off(rng):
    """A rotation vector and a shift along the head's axes, to the right of the plain pose."""
    landmarks, scores = seen(random_cameras(rng, 5)), rng.uniform(0, 1, (5, 52))
    plain, _ = pose.fit_cameras(landmarks, 256)
    labels, distance = pose.fit_cameras(landmarks, 256, scores=scores)
    for before, after, score in zip(plain, labels, scores):
        twist = pose.scores_map() @ score
        x, y, z = twist[:3]
        turn = torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])).numpy()
        (rotation, translation), found = pose_of(before), pose_of(after)
        np.testing.assert_allclose(found[0], rotation @ turn, atol=1e-9)
        np.testing.assert_allclose(found[1], translation + rotation @ twist[3:], atol=1e-9)
    np.testing.assert_allclose(distance, pose.reprojection(landmarks, labels, 256), rtol=1e-6)
    one, _ = pose.fit_cameras(landmarks[:1], 256, scores=scores[:1])
    np.testing.assert_array_equal(one, labels[:1])


def test_a_jaw_that_opens_is_taken_for_a_nod_of_three_degrees(rng):
    landmarks = seen(camera.from_pose(np.zeros((2, 3)), np.tile([0.0, 0.0, 2.7], (2, 1))))
    scores = np.eye(52)[[ARKIT52.index("jawOpen")] * 2] * [[0.0], [1.0]]
    angles = camera.head_angles(pose.fit_cameras(landmarks, 256, scores=scores)[0])
    np.testing.assert_allclose(angles[1] - angles[0], [0.0, -3.4, 0.0], atol=0.1)


def pose_of(label):
    """World-to-camera rotation (3, 3) and translation (3,) of a label."""
    cam2world, _ = camera.unpack(label)
    return cam2world[:3, :3].T, -cam2world[:3, :3].T @ cam2world[:3, 3]


def test_the_size_of_the_crop_does_not_matter_to_what_is_taken_off(rng):
    landmarks = seen(random_cameras(rng, 5)) + rng.normal(0, 1.5, (5, 468, 2))
    one, other = pose.still_cameras(landmarks * 2, 512)[0], pose.still_cameras(landmarks, 256)[0]
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("mouthPucker", 0.9), ("mouthSmile", 0.0)])
def test_a_face_that_moves_turns_the_fitted_head_less_than_its_33_landmarks_do(
    landmarker, astronaut, shared_models, name, value
):
    picture = crop(astronaut, crop_box(landmarker.detect(astronaut)[0].landmarks[:, :2]), 256)
    own = landmarker.detect(picture)[0]
    folder = shared_models / "face3d"
    face = MorphableFace.load(folder / "ict_face.npz", folder / "mediapipe_to_ict.npz")
    puppet = Puppet(face, picture, own.landmarks, own.scores)
    scores = own.scores.copy()
    scores[[n for n, full in enumerate(ARKIT52) if full.startswith(name)]] = value
    views = [puppet.view(shown).image for shown in (own.scores, scores)]
    landmarks = np.stack([landmarker.detect(view)[0].landmarks[:, :2] for view in views]).astype(float)
    fits = (pose.fit_cameras(landmarks, 256)[0], pose.still_cameras(landmarks, 256)[0])
    plain, steady = (np.ptp(camera.head_angles(labels)[:, 1]) for labels in fits)
    assert plain > 1.0
    assert steady < 0.75 * plain


def test_the_packaged_maps_are_small_and_symmetric():
    assert pose.steady_map().shape == (6, 468, 2)
    told = pose.scores_map()
    assert told.shape == (6, 52)
    twist = np.array([1.0, -1.0, -1.0, -1.0, 1.0, 1.0])[:, None]  # of the mirrored face
    np.testing.assert_allclose(told[:, list(ARKIT52_MIRRORED)], told * twist, atol=1e-6)
    assert np.degrees(np.abs(told[:3]).max()) < 10.0
    assert np.abs(told[3:]).max() < 2 * camera.UNITS_PER_CM


@pytest.mark.parametrize("of", [pose.steady_map, pose.scores_map])
def test_an_installation_without_the_maps_says_so(monkeypatch, tmp_path, of):
    of.cache_clear()
    monkeypatch.setattr(pose.resources, "files", lambda package: tmp_path)
    with pytest.raises(Export3DError, match=r"pose_steady\.safetensors cannot be read .* reinstall export3d"):
        of()
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "pose_steady.safetensors").write_bytes(b"something else")
    with pytest.raises(Export3DError, match="reinstall export3d"):
        of()
    (tmp_path / "assets" / "pose_steady.safetensors").write_bytes(save({"map": np.zeros((6, 4)), "other": np.zeros(3)}))
    with pytest.raises(Export3DError, match="reinstall export3d"):
        of()


def test_identical_frames_get_identical_cameras(portrait):
    labels, _ = pose.fit_cameras(np.repeat(portrait[None], 100, axis=0), 256)
    assert (labels == labels[0]).all()


def test_degenerate_landmarks_give_numbers_not_a_crash():
    for landmarks in (np.zeros((1, 478, 2)), np.full((1, 478, 2), 128.0)):
        labels, distance = pose.fit_cameras(landmarks, 256)
        assert np.isfinite(labels).all()
        assert np.isfinite(distance).all()


@pytest.mark.parametrize("shape", [(478, 2), (3, 100, 2), (3, 478, 1)])
def test_landmarks_of_another_shape_are_refused(shape):
    with pytest.raises(ShapeError):
        pose.fit_cameras(np.zeros(shape), 256)


@pytest.mark.parametrize("shape", [(52,), (2, 52), (3, 64)])
def test_scores_of_another_shape_are_refused(shape):
    with pytest.raises(ShapeError, match=r"\(3, 52\)"):
        pose.fit_cameras(np.zeros((3, 478, 2)), 256, scores=np.zeros(shape))
