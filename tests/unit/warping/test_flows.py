"""Flows from moved landmarks: on the planes, in the driving view, and where the mouth is open."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.camera import projected
from export3d.evaluation.protocols.references import expression_motion
from export3d.face.landmark_sets import INNER_LIPS
from export3d.motion.arkit import ARKIT52
from export3d.warping.elastic_mesh import FACE, show
from export3d.warping.flow_field import pixel_grid, stretch
from export3d.warping.flows import driving_flow, mouth_mask, openings, plane_flow, without_seam
from export3d.warping.landmark_motion import Face, average_landmarks
from export3d.warping.losses import flow_error
from tests.heads import CAMERAS, FRONT, HALF, NAMES, at_rest, bent, people, places, read, restless

# ---- the planes' flow ------------------------------------------------------------------------------------------------


def test_the_flow_carries_each_landmark_of_the_aligned_source_to_its_place() -> None:
    face = at_rest()
    points = bent(face.points)
    flow = plane_flow(points, face, HALF, 128)
    assert flow.shape == (4, 2, 128, 128)
    here = points[:, list(FACE), :2] / HALF
    found = read(flow, (here + 1) / 2)
    numbers = [FACE.index(n) for n in FRONT]
    away = (here + found - face.aligned).norm(dim=-1)[:, numbers]
    assert (face.aligned - here).norm(dim=-1)[:, numbers].mean() > 0.03
    assert away.mean() < 0.01
    assert away.max() < 0.05


@pytest.mark.parametrize("nearer", [0.1, -0.1])
def test_where_the_face_folds_the_planes_show_what_is_in_front(nearer: float) -> None:
    """One half of the face pushed over the other, before it or behind it: a camera looks from negative z."""
    face = at_rest(camera=CAMERAS[:1], points=average_landmarks()[None])
    points = face.points.detach().clone()
    points[points[..., 0] > 0.02] -= torch.tensor([0.06, 0.0, nearer])
    x, y, _ = face.points[0, : len(FACE) - 2].unbind(-1)
    pushed = ((x > 0.03) & (x < 0.06) & (y.abs() < 0.05)).nonzero()[:, 0]
    assert len(pushed) > 10
    here = points[:, pushed, :2] / HALF
    found = here + read(plane_flow(points, face, HALF, 128), (here + 1) / 2)
    away = (found - face.aligned[:, pushed]).norm(dim=-1)
    assert ((away < 0.02) if nearer > 0 else (away > 0.05)).float().mean() > 0.8


def test_the_flow_of_moved_landmarks_is_without_error_where_they_are_right() -> None:
    """Of the driving frame's own points `losses.flow_error` asks for next to nothing but what is hidden."""
    source, driving = people(4), people(4)
    before, after = (projected(points, CAMERAS)[0] for points in (source, driving))
    face = at_rest(points=source)
    sides = (before, CAMERAS, after, CAMERAS, driving[..., 2], HALF)
    still = float(flow_error(torch.zeros(4, 2, 96, 96), *sides))
    assert float(flow_error(plane_flow(driving, face, HALF, 96), *sides)) < 0.15 * still


# ---- the driving view ------------------------------------------------------------------------------------------------


def driving_view(image: Tensor, points: Tensor, face: Face, camera: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the sheet shows of pictures: itself, how far it is stretched there, and from where it comes."""
    flow, *_ = driving_flow(*projected(points, camera), face, image.shape[-1])
    return show(image, places(image.shape[-1]).add(flow / 2).permute(0, 2, 3, 1)), stretch(flow), flow


def test_its_own_camera_and_expression_show_the_source_itself() -> None:
    motion, image = restless(), torch.rand(4, 3, 64, 64)
    face = at_rest(motion)
    seen, stretched, offset = driving_view(image, motion(face.own, face), face, CAMERAS)
    assert stretched.shape == (4, 1, 64, 64)
    assert offset.shape == (4, 2, 64, 64)
    torch.testing.assert_close(seen, image, atol=2e-3, rtol=0)
    assert stretched.max() < 1e-3
    assert offset.abs().max() < 1e-4


@pytest.mark.parametrize("which", range(4), ids=NAMES)
def test_landmarks_are_shown_where_the_driving_camera_sees_them(which: int) -> None:
    """Pixels of a picture of coordinates tell where in the source they were found."""
    size, face = 128, at_rest()
    camera = CAMERAS[which : which + 1].expand(4, -1)
    points = bent(face.points)
    seen, _, offset = driving_view(places(size), points, face, camera)
    assert ((places(size) + offset / 2 - seen).abs() < 0.01).float().mean() > 0.95  # all but softened edges
    numbers = [FACE.index(n) for n in FRONT]
    here = projected(points, camera)[0][:, list(FRONT)]
    away = (read(seen, here) - face.places[:, numbers]).norm(dim=-1) * size
    others = torch.arange(4) != which
    assert (here - face.places[:, numbers]).norm(dim=-1)[others].mean() * size > 4
    assert away.median() < 0.5
    assert (away < 2).float().mean() > 0.9


def test_each_view_of_a_batch_is_as_it_is_alone() -> None:
    image, face = torch.rand(4, 3, 64, 64), at_rest()
    points = bent(face.points)
    together = driving_view(image, points, face, CAMERAS.flip(0))
    flow = plane_flow(points, face, HALF, 32)
    for b in range(4):
        one = slice(b, b + 1)
        own = Face(*(getattr(face, field.name)[one] for field in fields(Face)))
        alone = driving_view(image[one], points[one], own, CAMERAS.flip(0)[one])
        for found, wanted in zip(together, alone):
            torch.testing.assert_close(found[one], wanted, atol=1e-3, rtol=0)
        as_face, alone_as_face = (
            driving_flow(*projected(moved, camera), own_face, 64)[1]
            for moved, own_face, camera in (
                (points, face, CAMERAS.flip(0)),
                (points[one], own, CAMERAS.flip(0)[one]),
            )
        )
        torch.testing.assert_close(as_face[one], alone_as_face, atol=1e-5, rtol=0)
        torch.testing.assert_close(flow[one], plane_flow(points[one], own, HALF, 32), atol=1e-4, rtol=0)


@pytest.mark.parametrize("which", range(4), ids=NAMES)
def test_a_face_that_is_turned_grown_and_shifted_in_the_picture_gives_just_that_flow(which: int) -> None:
    """To its similarity everywhere, and to the sheet on the face."""
    face = at_rest(camera=CAMERAS[which : which + 1])
    here, turn = projected(face.points[:, list(FACE)], CAMERAS[which : which + 1])[0], torch.tensor(0.3)
    by = 1.2 * torch.stack([turn.cos(), turn.sin(), -turn.sin(), turn.cos()]).view(2, 2)
    shift = torch.tensor([0.1, -0.07])
    face = replace(face, places=(here - 0.5) @ by + 0.5 + shift)
    on_sheet, as_face, _ = driving_flow(*projected(face.points, CAMERAS[which : which + 1]), face, 64)
    grid = pixel_grid(64, torch.device("cpu"))
    wanted = torch.einsum("bihw,ij->bjhw", grid, by) + 2 * shift[None, :, None, None] - grid
    torch.testing.assert_close(as_face, wanted, atol=1e-5, rtol=0)
    numbers = [FACE.index(n) for n in FRONT]
    found, right = (read(flow, here)[:, numbers] for flow in (on_sheet, wanted))
    torch.testing.assert_close(found, right, atol=0.02, rtol=0)


def test_view_and_flow_give_the_landmarks_a_gradient() -> None:
    face = at_rest()
    for make in (
        lambda points: driving_view(places(48).expand(4, -1, -1, -1), points, face, CAMERAS.flip(0))[0],
        lambda points: driving_flow(*projected(points, CAMERAS.flip(0)), face, 48)[1],
        lambda points: plane_flow(points, face, HALF, 48),
    ):
        points = face.points.detach().clone().requires_grad_()
        make(points).square().mean().backward()
        assert points.grad is not None
        assert points.grad.isfinite().all()
        assert (points.grad.abs().sum(-1) > 0).sum(dim=1).min() > 150


def with_jaw_down(face: Face) -> Tensor:
    """The points of faces whose jaws are let down."""
    scores = np.zeros((2, 52))
    scores[1, ARKIT52.index("jawOpen")] = 0.8
    average = average_landmarks()[list(FACE)].double().numpy()
    move = torch.from_numpy(expression_motion(average, *scores)).float()
    moved = face.points.detach().clone()
    moved[:, list(FACE)] += move
    return moved


def test_a_mouth_that_opens_is_stretched_between_the_lips_and_not_on_the_cheeks() -> None:
    shut = average_landmarks()[None].clone()
    upper, lower = INNER_LIPS[1:10], INNER_LIPS[:10:-1]
    shut[:, list(lower)] = 0.9 * shut[:, list(upper)] + 0.1 * shut[:, list(lower)]
    face = at_rest(camera=CAMERAS[:1], points=shut)
    points = with_jaw_down(face)
    seen, in_view, _ = driving_view(torch.rand(1, 3, 128, 128), points, face, CAMERAS[:1])
    in_plane = stretch(plane_flow(points, face, HALF, 128))
    at = projected(points, CAMERAS[:1])[0], (points[..., :2] / HALF + 1) / 2
    for stretched, where in zip((in_view, in_plane), at):
        mouth = where[0, [13, 14]].mean(dim=0)
        values = [read(stretched, one[None, None])[0, 0, 0] for one in (mouth, *where[0, [50, 280, 117, 346]])]
        assert values[0] > 0.95
        assert max(values[1:]) < 0.2
    assert seen.isfinite().all()


def parted(lift: float) -> Face:
    """The average head whose lips are parted by so much of the height between them."""
    points = average_landmarks()[None].clone()
    upper, lower = INNER_LIPS[1:10], INNER_LIPS[:10:-1]
    points[:, list(lower), 1] += lift
    points[:, list(upper), 1] -= lift
    return at_rest(camera=CAMERAS[:1], points=points)


def test_at_rest_the_mouth_is_open_where_the_source_has_it_open() -> None:
    face = parted(0.01)
    own = F.avg_pool2d(mouth_mask(face.places, 128), 2)
    driving, source = openings(face.points, own, CAMERAS[:1], torch.zeros(1, 2, 128, 128)).unbind(dim=1)
    assert float((driving - source).abs().sum()) < 0.15 * float(driving.sum())
    assert float(driving.mean()) == pytest.approx(float(source.mean()), rel=0.05)
    lips = projected(face.points.detach(), CAMERAS[:1])[0][:, list(INNER_LIPS)]
    x, y = lips[0].T
    area = 0.5 * (x * y.roll(-1) - y * x.roll(-1)).sum().abs()
    assert float(driving.mean()) == pytest.approx(float(area), rel=0.1)
    assert float(read(driving[:, None], lips.mean(dim=1, keepdim=True))) == pytest.approx(1.0)


def test_a_jaw_opens_the_driving_mouth_and_leaves_the_upper_teeth_with_the_head() -> None:
    face = parted(0.004)
    points, still, own = with_jaw_down(face), torch.zeros(1, 2, 128, 128), mouth_mask(face.places, 64)
    before, after = (openings(p, own, CAMERAS[:1], still) for p in (face.points, points))
    assert float(after[:, 0].sum()) > 1.5 * float(before[:, 0].sum())
    assert torch.equal(after[:, 1], before[:, 1])
    shifted = openings(points, own, CAMERAS[:1], torch.full((1, 2, 128, 128), 2.0 * 8 / 128))
    torch.testing.assert_close(shifted[:, 1, :-8, :-8], before[:, 1, 8:, 8:], atol=1e-4, rtol=0)
    assert torch.equal(shifted[:, 0], after[:, 0])


# ---- mixed precision -------------------------------------------------------------------------------------------------


def test_under_bfloat16_autocast_nothing_is_rounded() -> None:
    """A place rounded to bfloat16 is off by up to a pixel of 256."""
    face = at_rest(restless(0.1))
    points, turned = bent(face.points).detach(), 0.1 * torch.randn(4, 2, 64, 64)

    def everything() -> list[Tensor]:
        flows = driving_flow(*projected(points, CAMERAS.flip(0)), face, 64)[:2]
        return [
            *flows,
            plane_flow(points, face, HALF, 32),
            openings(points, mouth_mask(face.places, 32), CAMERAS, turned),
        ]

    exact = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = everything()
    for one, other in zip(exact, mixed, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("size", "jump_px", "mended"), [(256, 4.0, True), (256, -4.0, True), (256, 16.0, False), (224, 3.0, True)]
)
def test_seams_at_the_outline_are_mended_where_nothing_hides_what_lies_behind(
    size: int, jump_px: float, mended: bool
) -> None:
    on_face = torch.zeros(1, size, size, dtype=torch.bool)
    on_face[..., 100:] = True
    flow = torch.zeros(1, 2, size, size)
    flow[:, 0, :, 100:] = -jump_px * 2.0 / size
    flow.requires_grad_()
    made = without_seam(flow, on_face)
    places = (pixel_grid(size, flow.device) + made)[0, 0, 50] * size / 2.0
    steps = places.diff()
    assert bool(((steps > 0.3) & (steps < 1.7)).all()) is mended
    assert torch.equal(made[..., :94], flow[..., :94])
    assert torch.equal(made[..., 106:], flow[..., 106:])
    still = torch.zeros_like(flow, requires_grad=True)
    without_seam(still, on_face).square().sum().backward()
    assert still.grad is not None
    assert torch.isfinite(still.grad).all()
