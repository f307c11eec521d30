"""Losses of the warp: landmarks, flow, the warped source, and the mouth enlarged."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from export3d.camera import Camera, project
from export3d.face.landmark_sets import EYE_LOOPS, LIPS
from export3d.face.mesh import canonical_mesh
from export3d.image import resize
from export3d.perceptual import Perceptual
from export3d.warping.average_head import plane_positions, proxy_depth
from export3d.warping.flow_field import look_up
from export3d.warping.losses import eyes_error, flow_error, landmark_error, mouth_error, moved_error


@pytest.fixture(scope="module")
def perceptual() -> Perceptual:
    """AlexNet with random weights."""
    from export3d.perceptual import _alex

    torch.manual_seed(0)
    return Perceptual("alex", _alex().state_dict())


def images() -> tuple[Tensor, Tensor]:
    """Image and target."""
    return torch.rand(1, 3, 64, 64) * 2 - 1, torch.rand(1, 3, 64, 64) * 2 - 1


# ---- flow ------------------------------------------------------------------------------------------------------------

HALF = 0.36


CORNERS = ([33, 133], [263, 362])


def seen(vertices: np.ndarray, camera: Camera, gaze: tuple[float, float] = (0.0, 0.0)) -> tuple[Tensor, Tensor]:
    """Landmarks (1, 478, 2) of a head with these mesh vertices, and the camera (1, 25) that sees them.

    Irises lie between the corners of their eyes, moved by `gaze`, at the corners' depth.
    """
    irises = [np.repeat([vertices[eye].mean(axis=0) + np.array([*gaze, 0.0])], 5, axis=0) for eye in CORNERS]
    points = np.concatenate([vertices, *irises])
    landmarks = torch.from_numpy(project(points, camera.label)[None]).float()
    return landmarks, torch.from_numpy(camera.label[None]).float()


def depth_of(vertices: np.ndarray) -> Tensor:
    """(1, 478) z of the landmarks of `seen`."""
    irises = [np.repeat(vertices[eye, 2].mean(), 5) for eye in CORNERS]
    return torch.from_numpy(np.concatenate([vertices[:, 2], *irises])[None]).float()


MESH = depth_of(canonical_mesh().vertices)


def on_the_average_head(shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """The canonical mesh's vertices moved by `shift`, with the depth that the alignment gives their new place."""
    vertices = canonical_mesh().vertices.copy()
    vertices[:, :2] += shift
    vertices[:, 2] = proxy_depth(*torch.from_numpy(vertices[:, :2]).T).numpy()
    return vertices


def test_a_flow_that_carries_each_landmark_to_its_place_has_no_error() -> None:
    """The driving face is the mesh; the source has every landmark a little right of and above it."""
    shift = (0.02, -0.03)
    source, driving = (
        seen(on_the_average_head(shift), Camera.orbit(10.0)),
        seen(canonical_mesh().vertices, Camera.orbit()),
    )
    flow = (torch.tensor(shift) / HALF)[None, :, None, None].expand(1, 2, 48, 48)
    assert float(flow_error(flow, *source, *driving, MESH, HALF)) < 1e-3
    wrong = float(flow_error(torch.zeros(1, 2, 48, 48), *source, *driving, MESH, HALF))
    assert wrong == pytest.approx(0.05 / HALF, rel=0.02)  # L1, in half extents
    assert float(flow_error(2 * flow, *source, *driving, MESH, HALF)) == pytest.approx(wrong, rel=0.02)
    turned = seen(canonical_mesh().vertices, Camera.orbit(20.0))
    assert float(flow_error(flow, *source, *turned, MESH, HALF)) < 1e-3
    assert float(flow_error(flow, *source, *turned, MESH + 0.05, HALF)) > 0.02  # another depth, another place


def test_the_flow_is_read_at_the_driving_face() -> None:
    """Offsets that differ from place to place: wanted at the driving landmarks, whatever the source's camera."""
    ramp = torch.linspace(-0.9, 0.9, 10) * 0.1
    flow = torch.stack([ramp.expand(10, 10), ramp.expand(10, 10).T])[None]  # linear in x and y: read back exactly
    vertices = canonical_mesh().vertices.copy()
    moved = vertices.copy()
    moved[:, :2] *= 1.1  # a place p of the plane looks at p + 0.1 p
    moved[:, 2] = proxy_depth(*torch.from_numpy(moved[:, :2]).T).numpy()
    driving = seen(vertices, Camera.orbit(-15.0, 5.0))
    for camera in (Camera.orbit(), Camera.orbit(10.0, -5.0)):
        assert float(flow_error(flow, *seen(moved, camera), *driving, MESH, HALF)) < 3e-3
    assert float(flow_error(-flow, *seen(moved, Camera.orbit()), *driving, MESH, HALF)) > 0.02


def test_a_gaze_alone_is_an_error_that_counts() -> None:
    """Same face, other gaze: only the ten iris landmarks differ, and they count five times."""
    source = seen(on_the_average_head(), Camera.orbit(), gaze=(0.01, 0.0))
    driving = seen(on_the_average_head(), Camera.orbit())
    still = torch.zeros(1, 2, 48, 48)
    at_rest = float(flow_error(still, *driving, *driving, MESH, HALF))
    assert float(flow_error(still, *source, *driving, MESH, HALF)) - at_rest == pytest.approx(
        50 / (468 + 50) * 0.01 / HALF, rel=0.2
    )


def test_the_flow_error_is_the_weighted_mean_over_landmarks_inside_the_plane() -> None:
    landmarks, source = torch.rand(2, 478, 2) * 0.6 + 0.2, torch.rand(2, 478, 2) * 0.6 + 0.2
    landmarks[:, 100:200] += 5.0  # off the plane: they count for nothing
    landmarks[1, 200:300] += 5.0
    camera = torch.from_numpy(np.stack([Camera.orbit(5.0).label, Camera.orbit(-5.0).label])).float()
    depth = torch.cat([MESH, MESH + 0.01])
    here, there = plane_positions(landmarks, camera, HALF, depth), plane_positions(source, camera, HALF)
    weight = ((here.abs().amax(-1) < 1) & (there.abs().amax(-1) < 1)).float()
    assert not weight[:, 100:200].any()
    weight[:, 468:] *= 5.0
    error = ((there - here).abs().sum(-1) * weight).sum(-1) / weight.sum(-1)
    expected = error.mean()  # of each pair's own mean
    assert weight[0].sum() != weight[1].sum()
    found = flow_error(torch.zeros(2, 2, 8, 8), source, camera, landmarks, camera, depth, HALF)
    torch.testing.assert_close(found, expected)


def test_the_flow_gets_a_gradient_and_none_is_needed_where_no_landmark_is_inside() -> None:
    flow = torch.zeros(1, 2, 16, 16, requires_grad=True)
    source, driving = (
        seen(on_the_average_head((0.02, 0.0)), Camera.orbit()),
        seen(canonical_mesh().vertices, Camera.orbit()),
    )
    flow_error(flow, *source, *driving, MESH, HALF).backward()
    assert flow.grad is not None
    assert flow.grad[:, 0].count_nonzero() > 10
    nowhere = (source[0] + 5.0, source[1])
    assert float(flow_error(flow, *nowhere, *nowhere, MESH, HALF).detach()) == 0.0


# ---- landmarks -------------------------------------------------------------------------------------------------------


def two_heads() -> tuple[Tensor, Tensor, Tensor]:
    """Points (2, 478, 3) of the canonical mesh, their places (2, 478, 2) and the cameras (2, 25) that see them."""
    views = [Camera.orbit(10.0), Camera.orbit(-20.0, 5.0)]
    places, labels = zip(*(seen(canonical_mesh().vertices, camera) for camera in views))
    mesh = canonical_mesh().vertices
    irises = [np.repeat([mesh[eye].mean(axis=0)], 5, axis=0) for eye in CORNERS]
    points = torch.from_numpy(np.concatenate([mesh, *irises])).float()
    return points.expand(2, -1, -1), torch.cat(places), torch.cat(labels)


def test_landmarks_at_their_places_have_no_error_and_the_others_that_of_their_distance() -> None:
    points, places, camera = two_heads()
    assert float(landmark_error(points, places, camera)) < 1e-6
    away = places + torch.tensor([0.03, -0.01])
    assert float(landmark_error(points, away, camera)) == pytest.approx(0.04, rel=1e-4)  # weights sum to 1
    away[1] = places[1]
    assert float(landmark_error(points, away, camera)) == pytest.approx(0.02, rel=1e-4)


def test_lips_and_lids_count_three_times_and_irises_five_times_as_much_as_a_cheek() -> None:
    points, places, camera = two_heads()

    def error(landmark: int) -> float:
        away = places.clone()
        away[:, landmark, 0] += 0.01
        return float(landmark_error(points, away, camera))

    cheek = error(50)
    for landmark in (0, 13, 14, 17, 61, 291, 33, 159, 145, 386, 374, 263):
        assert error(landmark) == pytest.approx(3 * cheek, rel=1e-2)
    for landmark in range(468, 478):
        assert error(landmark) == pytest.approx(5 * cheek, rel=1e-2)
    assert error(4) == pytest.approx(cheek, rel=1e-2)


def test_the_landmark_error_pulls_points_towards_their_places_and_not_along_the_rays() -> None:
    points, places, camera = two_heads()
    moved = (points + 0.01 * torch.randn_like(points)).requires_grad_()
    error = landmark_error(moved, places, camera)
    error.backward()
    assert moved.grad is not None
    assert (moved.grad.abs().sum(-1) > 0).all()
    with torch.no_grad():
        assert landmark_error(moved - 0.1 * moved.grad, places, camera) < error
    rays = torch.nn.functional.normalize(moved.detach() - camera[:, None, [3, 7, 11]], dim=-1)
    along = (moved.grad * rays).sum(-1).abs()
    assert (along < 1e-3 * moved.grad.norm(dim=-1)).all()


# ---- the warped source --------------------------------------------------------------------------------------------


def discs(shift: int) -> Tensor:
    """(1, 3, 64, 64): a soft disc, so many pixels right of the middle."""
    x = torch.arange(64) - 31.5
    y, x = torch.meshgrid(x, x - shift, indexing="ij")
    return (2.0 * torch.sigmoid(12.0 - (x.square() + y.square()).sqrt()) - 1.0).expand(1, 3, 64, 64)


@pytest.mark.parametrize("with_network", [False, True])
def test_what_lies_at_its_place_costs_nothing_and_the_rest_by_how_far_it_is_away(
    with_network: bool, perceptual: Perceptual
) -> None:
    network = perceptual if with_network else None
    errors = [float(moved_error(discs(shift), discs(0), network)) for shift in (0, 1, 2, 4, 8)]
    assert errors[0] == 0.0
    assert all(nearer < farther for nearer, farther in itertools.pairwise(errors))


def test_the_error_of_what_is_moved_is_the_perceptual_distance_and_half_the_differences_at_three_sizes(
    perceptual: Perceptual,
) -> None:
    moved, target = images()
    difference = (moved - target).numpy()
    wanted = sum(
        0.5 * np.abs(difference.reshape(1, 3, 64 // n, n, 64 // n, n).mean(axis=(3, 5))).mean() for n in (1, 4, 8)
    )
    plain = moved_error(moved, target, None)
    assert float(plain) == pytest.approx(float(wanted), rel=1e-5)
    torch.testing.assert_close(moved_error(moved, target, perceptual), plain + perceptual(moved, target).mean())


@pytest.mark.parametrize("with_network", [False, True])
def test_the_error_of_what_is_moved_pulls_it_to_its_place(with_network: bool, perceptual: Perceptual) -> None:
    """Through a flow: five pixels away, where neither edge meets the other."""
    offset = torch.zeros(1, 2, 1, 1, requires_grad=True)
    found = look_up(discs(5), offset.expand(1, 2, 64, 64))
    moved_error(found, discs(0), perceptual if with_network else None).backward()
    assert offset.grad is not None
    right, down = offset.grad[0, :, 0, 0].tolist()
    assert right < 0  # what is wanted lies to the right in the source
    assert abs(down) < 0.5 * abs(right)


# ---- the mouth looked at closely -------------------------------------------------------------------------------------


def smiling(centre: tuple[float, float], width: float) -> Tensor:
    """(1, 478, 2): a mouth that wide about a place, everything else at a corner."""
    points, turn = torch.zeros(1, 478, 2), torch.linspace(0.0, 2 * np.pi, 41)[:40]
    points[0, list(LIPS)] = torch.tensor(centre) + width / 2 * torch.stack([turn.cos(), 0.4 * turn.sin()], dim=-1)
    return points


def test_only_what_is_near_the_mouth_costs_and_none_where_nothing_differs(perceptual: Perceptual) -> None:
    _, target = images()
    landmarks = smiling((0.5, 0.75), 0.3)
    assert float(mouth_error(target, target, landmarks, perceptual)) == 0.0
    near, far = target.clone(), target.clone()
    near[..., 44:52, 28:36] += 0.5
    far[..., :20, :] += 0.5
    assert float(mouth_error(near, target, landmarks, perceptual)) > 0.01
    assert float(mouth_error(far, target, landmarks, perceptual)) == 0.0


@pytest.mark.parametrize(("width", "side"), [(0.3, 0.45), (0.05, 0.2)])
def test_the_mouth_is_enlarged_from_half_as_large_again_or_a_fifth_of_the_picture(width: float, side: float) -> None:
    """A difference everywhere costs what it is; one in a square of known area that share of it."""
    _, target = (resize(x, 256) for x in images())
    landmarks = smiling((0.5, 0.5), width)
    assert float(mouth_error(target + 0.2, target, landmarks, None)) == pytest.approx(0.1, rel=1e-4)
    small = target.clone()
    small[..., 120:136, 120:136] += 0.2
    found = float(mouth_error(small, target, landmarks, None))
    assert found == pytest.approx(0.1 * (16 / 256 / side) ** 2, rel=0.05)


def test_the_mouths_error_is_half_the_difference_and_the_perceptual_distance(perceptual: Perceptual) -> None:
    image, target = images()
    landmarks = smiling((0.5, 0.5), 0.6)
    steps = (torch.arange(32) + 0.5) / 32 * 0.9 + 0.05
    grid = 2 * torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)[None] - 1
    near, wanted = (torch.nn.functional.grid_sample(x, grid, align_corners=False) for x in (image, target))
    plain = mouth_error(image, target, landmarks, None)
    torch.testing.assert_close(plain, 0.5 * (near - wanted).abs().mean(), atol=1e-5, rtol=1e-4)
    both = mouth_error(image, target, landmarks, perceptual)
    torch.testing.assert_close(both, plain + perceptual(near, wanted).mean(), atol=1e-4, rtol=1e-3)


# ---- the eyes looked at closely --------------------------------------------------------------------------------------


@pytest.mark.parametrize("eye", [0, 1])
def test_each_eye_costs_half_and_nothing_else_does(eye: int) -> None:
    _, target = (resize(x, 256) for x in images())
    landmarks = torch.zeros(1, 478, 2)
    places = (0.3, 0.4), (0.7, 0.4)
    for loop, (x, y) in zip(EYE_LOOPS, places):
        landmarks[0, list(loop)] = torch.tensor([x, y])
        landmarks[0, loop[0], 0] -= 0.06
        landmarks[0, loop[8], 0] += 0.06  # 0.12 wide, enlarged from 0.18
    column, row = (round(256 * value) for value in places[eye])
    image = target.clone()
    image[..., row - 8 : row + 8, column - 8 : column + 8] += 0.2
    found = float(eyes_error(image, target, landmarks, None))
    assert found == pytest.approx(0.5 * 0.1 * (16 / 256 / 0.18) ** 2, rel=0.05)
    image = target.clone()
    image[..., 160:, :] += 0.2
    assert float(eyes_error(image, target, landmarks, None)) == 0.0
