import numpy as np
import pytest

from export3d import camera
from export3d.camera import Camera
from export3d.errors import ShapeError


@pytest.fixture
def labels(rng: np.random.Generator) -> np.ndarray:
    """(40, 25) labels of cameras within 60 degrees of a frontal one."""
    angles = rng.uniform(-60, 60, (40, 3))
    position = np.array([0.0, 0.0, 2.7]) + rng.normal(0, 0.2, (40, 3))
    return camera.from_pose(angles, position)


def direction_in_image(label: np.ndarray, world: tuple[float, float, float]) -> np.ndarray:
    """Where a world point lies from the projection of the origin, image units."""
    points = np.array([world, (0.0, 0.0, 0.0)])
    there, origin = camera.project(points, label)
    return there - origin


NOSE = (0.0, 0.0, -0.2)
CROWN = (0.0, -0.2, 0.0)


def test_unpack_inverts_pack_bit_for_bit(rng: np.random.Generator) -> None:
    cam2world, intrinsics = rng.normal(size=(5, 2, 4, 4)), rng.normal(size=(5, 2, 3, 3))
    label = camera.pack(cam2world, intrinsics)
    assert label.shape == (5, 2, 25)
    back = camera.unpack(label)
    np.testing.assert_array_equal(back[0], cam2world)
    np.testing.assert_array_equal(back[1], intrinsics)


def test_pack_inverts_unpack_bit_for_bit(labels: np.ndarray) -> None:
    np.testing.assert_array_equal(camera.pack(*camera.unpack(labels)), labels)


def test_the_first_sixteen_numbers_are_cam2world_row_by_row() -> None:
    label = Camera.look_at(centre=(1.0, 2.0, -3.0)).label
    np.testing.assert_allclose(label[[3, 7, 11]], [1.0, 2.0, -3.0])
    np.testing.assert_array_equal(label[12:16], [0, 0, 0, 1])
    np.testing.assert_array_equal(label[16:], [camera.FOCAL, 0, 0.5, 0, camera.FOCAL, 0.5, 0, 0, 1])


def test_a_tensor_unpacks_to_tensors() -> None:
    import torch

    cam2world, intrinsics = camera.unpack(torch.arange(50.0).reshape(2, 25))
    assert cam2world.shape == (2, 4, 4)
    assert intrinsics[1, 2, 2] == 49.0


def test_a_camera_survives_its_label(labels: np.ndarray) -> None:
    for label in labels[:5]:
        np.testing.assert_array_equal(Camera.from_label(label).label, label)


@pytest.mark.parametrize("size", [0, 16, 24, 26])
def test_a_label_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ShapeError, match="25"):
        camera.unpack(np.zeros(size))


def test_matrices_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ShapeError):
        camera.pack(np.zeros((2, 4, 4)), np.zeros((3, 3, 3)))
    with pytest.raises(ShapeError):
        Camera(np.eye(3), np.eye(3))


def test_mirroring_twice_gives_the_same_camera(labels: np.ndarray) -> None:
    np.testing.assert_allclose(camera.mirror(camera.mirror(labels)), labels, atol=1e-15)


def test_a_mirrored_camera_sees_the_mirrored_world_mirrored(labels: np.ndarray, rng: np.random.Generator) -> None:
    points = rng.normal(0, 0.2, (len(labels), 9, 3))
    seen = camera.project(points, labels)
    mirrored = camera.project(points * [-1, 1, 1], camera.mirror(labels))
    np.testing.assert_allclose(mirrored[..., 0], 1 - seen[..., 0], atol=1e-12)
    np.testing.assert_allclose(mirrored[..., 1], seen[..., 1], atol=1e-12)


def test_mirroring_negates_yaw_and_roll_and_keeps_pitch(labels: np.ndarray) -> None:
    np.testing.assert_allclose(
        camera.head_angles(camera.mirror(labels)), camera.head_angles(labels) * [-1, 1, -1], atol=1e-9
    )


def test_a_mirrored_camera_is_a_camera(labels: np.ndarray) -> None:
    rotation = camera.unpack(camera.mirror(labels))[0][:, :3, :3]
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0)


@pytest.mark.parametrize("yaw", [-70.0, -20.0, 0.0, 35.0])
@pytest.mark.parametrize("pitch", [-50.0, 0.0, 25.0])
def test_an_orbit_shows_the_head_at_its_angles_and_upright(yaw: float, pitch: float) -> None:
    label = Camera.orbit(yaw, pitch, radius=3.0).label
    np.testing.assert_allclose(camera.head_angles(label), [yaw, pitch, 0.0], atol=1e-9)
    np.testing.assert_allclose(camera.head_position(label), [0, 0, 3.0], atol=1e-12)


def test_an_orbit_about_a_target_keeps_it_in_the_middle() -> None:
    target = np.array([0.1, -0.2, 0.3])
    for yaw in (-30.0, 0.0, 60.0):
        label = Camera.orbit(yaw, 10.0, target=target).label
        np.testing.assert_allclose(camera.project(target[None], label), [[0.5, 0.5]], atol=1e-12)


def test_pose_angles_and_position_survive_the_label(rng: np.random.Generator) -> None:
    angles = rng.uniform(-80, 80, (100, 3))
    position = np.array([0.0, 0.0, 2.7]) + rng.normal(0, 0.3, (100, 3))
    label = camera.from_pose(angles, position)
    np.testing.assert_allclose(camera.head_angles(label), angles, atol=1e-9)
    np.testing.assert_allclose(camera.head_position(label), position, atol=1e-12)


def test_head_rotation_inverts_head_angles(labels: np.ndarray) -> None:
    rotation = np.swapaxes(camera.unpack(labels)[0][:, :3, :3], -1, -2)
    np.testing.assert_allclose(camera.head_rotation(camera.head_angles(labels)), rotation, atol=1e-12)


def test_the_default_camera_is_frontal_and_stands_before_the_face() -> None:
    label = Camera.look_at().label
    np.testing.assert_allclose(camera.head_angles(label), [0, 0, 0], atol=1e-12)
    expected = np.eye(4)
    expected[2, 3] = -2.7
    np.testing.assert_allclose(camera.unpack(label)[0], expected, atol=1e-12)


def test_positive_yaw_moves_the_nose_to_the_right_of_the_image() -> None:
    right, down = direction_in_image(camera.from_pose([20.0, 0, 0], [0, 0, 2.7]), NOSE)
    assert right > 0.01
    assert abs(down) < 1e-9


def test_positive_pitch_moves_the_nose_up_in_the_image() -> None:
    right, down = direction_in_image(camera.from_pose([0, 20.0, 0], [0, 0, 2.7]), NOSE)
    assert down < -0.01
    assert abs(right) < 1e-9


def test_positive_roll_tilts_the_crown_clockwise() -> None:
    right, down = direction_in_image(camera.from_pose([0, 0, 20.0], [0, 0, 2.7]), CROWN)
    assert right > 0.01
    assert down < -0.01


def test_the_image_has_x_to_the_right_and_y_down() -> None:
    label = Camera.look_at().label
    assert direction_in_image(label, (0.1, 0, 0))[0] > 0
    assert direction_in_image(label, (0, 0.1, 0))[1] > 0


def test_a_point_at_the_focal_plane_lands_where_similar_triangles_say() -> None:
    label = Camera.look_at(centre=(0, 0, -2.0)).label
    np.testing.assert_allclose(
        camera.project(np.array([[0.1, -0.05, 0.0]]), label), [[0.5 + 4.2647 * 0.05, 0.5 - 4.2647 * 0.025]]
    )


def test_projection_works_over_leading_axes(labels: np.ndarray, rng: np.random.Generator) -> None:
    points = rng.normal(0, 0.1, (len(labels), 4, 3))
    together = camera.project(points, labels)
    apart = np.stack([camera.project(p, label) for p, label in zip(points, labels)])
    np.testing.assert_allclose(together, apart)


def test_roll_turns_the_camera_about_its_axis() -> None:
    plain, rolled = Camera.look_at(), Camera.look_at(roll_rad=0.3)
    np.testing.assert_allclose(plain.cam2world[:, 2:], rolled.cam2world[:, 2:], atol=1e-12)
    roll = camera.head_angles(rolled.label)[2]
    assert abs(roll) == pytest.approx(np.degrees(0.3))


def test_a_camera_straight_above_still_looks_at_its_target() -> None:
    cam2world = Camera.look_at(centre=(0, -2, 0)).cam2world
    np.testing.assert_allclose(cam2world[:3, 2], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(cam2world[:3, :3] @ cam2world[:3, :3].T, np.eye(3), atol=1e-12)


def test_a_camera_in_its_own_target_is_refused() -> None:
    with pytest.raises(ShapeError, match="own centre"):
        Camera.look_at(centre=(0, 0, 0))
