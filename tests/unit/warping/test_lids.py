"""Eyelids that close."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from export3d.camera import projected
from export3d.face.landmark_sets import AROUND_EYES, EYE_LOOPS, LID_MIDDLES, LOWER_LIDS, UPPER_LIDS
from export3d.warping.elastic_mesh import FACE, ElasticMesh
from export3d.warping.landmark_motion import average_landmarks
from export3d.warping.lids import shut, unfolded
from tests.tiny_models import cameras

SIZE = 256
WIDTH = 0.3
"""Distance of the outer eye corners, image widths."""


def face(right: float = 1.0, left: float = 1.0) -> Tensor:
    """(1, 478, 2) a large frontal face whose eyes are open by these parts of what they are at rest."""
    points = projected(average_landmarks()[None], cameras(1))[0]
    points = points - points[:, :468].mean(dim=1, keepdim=True)
    points = points * WIDTH / (points[:, 33] - points[:, 263]).norm() + 0.5
    for part, upper, lower in zip((right, left), UPPER_LIDS, LOWER_LIDS):
        below = points[:, list(lower)]
        points[:, list(upper)] = below + part * (points[:, list(upper)] - below)
    return points


def gaps(points: Tensor) -> list[float]:
    """Of the right and the left eye, in distances of the outer corners."""
    return [float((points[0, up] - points[0, low]).norm()) / WIDTH for up, low in LID_MIDDLES.values()]


def own(points: Tensor) -> Tensor:
    return points[:, list(FACE)]


def test_lids_that_are_almost_closed_meet() -> None:
    driving = face(right=0.1)
    assert gaps(driving)[0] > 0.005
    closed, open_eye = gaps(shut(driving, own(face())))
    assert closed < 0.1 * gaps(driving)[0]
    assert open_eye == pytest.approx(gaps(driving)[1])


def test_the_gap_shrinks_without_a_jump() -> None:
    source = own(face())
    found = [gaps(shut(face(0.05 * step), source))[0] for step in range(25)]
    steps = [after - before for before, after in itertools.pairwise(found)]
    assert min(steps) >= 0.0
    assert max(steps) < 4 * (found[-1] - found[0]) / len(steps)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.3, 1.0])
def test_its_own_expression_leaves_a_face_unchanged(part: float) -> None:
    points = face(right=part)
    torch.testing.assert_close(shut(points, own(points)), points)


def test_lids_that_open_wide_do_not_pass_their_folds() -> None:
    source, wide = face(), face(right=2.5)
    upper, fold = ([points[k] for k in (3, 4)] for points in (EYE_LOOPS[0][1:8], AROUND_EYES[0][1:8]))
    room = [(points[0, upper, 1] - points[0, fold, 1]) for points in (source, wide, unfolded(wide, own(source)))]
    assert room[0].min() > 0.0
    assert room[1].max() < 0.0, "the lid has passed its fold"
    assert (room[2] > 0.1 * room[0]).all()
    torch.testing.assert_close(unfolded(face(right=0.3), own(source)), face(right=0.3))


def test_only_lids_move_and_gradients_reach_them() -> None:
    driving = face(right=0.2, left=0.2).requires_grad_(True)
    closed = shut(driving, own(face()))
    moved = (closed - driving).detach().abs().amax(dim=(0, 2)).nonzero().flatten().tolist()
    assert set(moved) == {n for lids in (*UPPER_LIDS, *LOWER_LIDS) for n in lids}
    closed.square().sum().backward()
    assert driving.grad is not None
    assert bool(driving.grad.isfinite().all())


def test_lashes_keep_their_width_where_an_eye_closes() -> None:
    """A little above the edge of the lid the source shows what is as far above it; without lashes, something nearer."""
    source, driving = face(), shut(face(0.05, 0.05), own(face()))
    upper = UPPER_LIDS[0][3]
    above = torch.tensor([0.0, -0.006])
    found = []
    for lashes in (True, False):
        rest, places = own(source), own(driving)
        lookup, _ = ElasticMesh(rest, lashes).lookup(places, torch.zeros(places.shape[:2]), SIZE)
        column, row = ((driving[0, upper] + above) * SIZE).long().tolist()
        here = (torch.tensor([column, row]) + 0.5) / SIZE
        found.append(float((driving[0, upper] - here)[1] - (source[0, upper] - lookup[0, row, column])[1]))
    assert abs(found[0]) < 0.5 / SIZE
    assert found[1] > 1.0 / SIZE


def test_the_folds_lie_outside_the_edges_of_the_lids() -> None:
    points = average_landmarks()[:, :2]
    for loop, around in zip(EYE_LOOPS, AROUND_EYES):
        middle = points[list(loop)].mean(dim=0)
        edge, fold = ((points[list(numbers)] - middle).norm(dim=1) for numbers in (loop, around))
        assert bool((fold > edge).all())


@pytest.mark.parametrize("size", [33, SIZE])
def test_a_mesh_with_lashes_at_rest_shows_the_picture_itself(size: int) -> None:
    places = own(face())
    lookup, _ = ElasticMesh(places, True).lookup(places, torch.zeros(places.shape[:2]), size)
    steps = (torch.arange(size) + 0.5) / size
    pixels = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
    torch.testing.assert_close(lookup[0], pixels, atol=1e-5, rtol=0)
