"""Irises that roll between the eyelids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.camera import projected
from export3d.face.landmark_sets import EYE_CORNERS, IRISES, LOWER_LIDS, UPPER_LIDS
from export3d.warping.elastic_mesh import FACE, ElasticMesh
from export3d.warping.flow_field import pixel_grid
from export3d.warping.irises import at_rest, rolled
from export3d.warping.landmark_motion import average_landmarks
from tests.tiny_models import cameras

SIZE = 256
RADIUS = 0.016


def face(look: tuple[float, float] = (0.0, 0.0), tilt: float = 0.0) -> Tensor:
    """(1, 478, 2) a large frontal face whose irises have rims and lie aside by `look`, image widths."""
    points = projected(average_landmarks()[None], cameras(1))[0]
    points = (points - points[:, :468].mean(dim=1, keepdim=True)) * 1.2 + 0.5
    for iris in IRISES:
        points[:, iris[0]] += torch.tensor(look)
        for number, (x, y) in zip(iris[1:], ((1, 0), (0, -1), (-1, 0), (0, 1))):
            points[:, number] = points[:, iris[0]] + RADIUS * torch.tensor([x, y])
    turn = torch.tensor(tilt).deg2rad()
    rotation = torch.stack([torch.stack([turn.cos(), turn.sin()]), torch.stack([-turn.sin(), turn.cos()])])
    return (points - 0.5) @ rotation + 0.5


def flows(driving: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """The mesh's flow with irises at rest, and the same with irises that have rolled."""
    own = source[:, list(FACE)]
    places = at_rest(driving[:, list(FACE)], own)
    found, _ = ElasticMesh(own).lookup(places, torch.zeros(places.shape[:2]), SIZE)
    elastic = 2.0 * found.permute(0, 3, 1, 2) - 1.0 - pixel_grid(SIZE, own.device)
    return elastic, rolled(elastic, elastic, driving, own)


def seen_at(flow: Tensor, places: Tensor) -> Tensor:
    """Where in the source the pixels at places (N, 2), 0..1, come from, 0..1."""
    offset = F.grid_sample(flow, (2.0 * places - 1.0)[None, None], align_corners=False)[0, :, 0].mT
    return places + offset / 2.0


def test_the_whole_iris_moves_as_one_disc() -> None:
    source = face()
    for look, tilt in (((0.008, 0.0), 0.0), ((-0.008, 0.0), 15.0), ((0.0, 0.003), 0.0)):
        driving = face(look, tilt)
        _, flow = flows(driving, source)
        for iris in IRISES:
            inner = driving[0, iris[0]] + 0.25 * (driving[0, list(iris)] - driving[0, iris[0]])
            wanted = source[0, iris[0]] + 0.25 * (source[0, list(iris)] - source[0, iris[0]])
            assert (seen_at(flow, inner) - wanted).abs().max() < 0.5 / SIZE


def test_eyes_that_look_nowhere_else_follow_the_mesh() -> None:
    elastic, flow = flows(face(tilt=10.0), face())
    torch.testing.assert_close(flow, elastic, atol=1e-4, rtol=0)


def test_nothing_moves_outside_the_eyelids() -> None:
    driving = face((0.01, 0.0))
    elastic, flow = flows(driving, face())
    changed = (((flow - elastic).abs().amax(dim=1)[0] > 1e-6).nonzero().flip(1) + 0.5) / SIZE
    assert len(changed) > 50
    eyes = (driving[0, [out, *up, inn, *low]] for (out, inn), up, low in zip(EYE_CORNERS, UPPER_LIDS, LOWER_LIDS))
    edge = 2 / SIZE
    inside = [((changed > eye.amin(0) - edge) & (changed < eye.amax(0) + edge)).all(dim=1) for eye in eyes]
    assert bool((inside[0] | inside[1]).all())
    assert all(bool(one.any()) for one in inside)


def test_closed_eyes_hide_their_irises() -> None:
    driving = face((0.01, 0.0))
    for up, low in zip(UPPER_LIDS, LOWER_LIDS):
        driving[:, list(up)] = driving[:, list(low)]
    elastic, flow = flows(driving, face())
    assert (flow - elastic).abs().mean() < 1e-4


def test_an_iris_that_rolls_far_is_seen_once() -> None:
    """Behind it is the white of the eye: no pixel there comes from the source's iris."""
    source, size = face(), 2 * SIZE
    own = source[:, list(FACE)]
    pixels = (pixel_grid(size, own.device).flatten(2).mT[0] + 1.0) / 2.0
    for way in (-0.03, 0.03):
        driving = face((way, 0.0))
        found, _ = ElasticMesh(own).lookup(at_rest(driving[:, list(FACE)], own), torch.zeros(1, len(FACE)), size)
        elastic = 2.0 * found.permute(0, 3, 1, 2) - 1.0 - pixel_grid(size, own.device)
        flow = rolled(elastic, elastic, driving, own)
        for (out, inner), up, low, iris in zip(EYE_CORNERS, UPPER_LIDS, LOWER_LIDS, IRISES, strict=True):
            eye = driving[0, [out, *up, inner, *low]]
            inside = ((pixels > eye.amin(0) + 3 / size) & (pixels < eye.amax(0) - 3 / size)).all(dim=1)
            behind = pixels[inside & ((pixels - driving[0, iris[0]]).norm(dim=1) > 1.3 * RADIUS)]
            assert len(behind) > 60
            assert ((seen_at(flow, behind) - source[0, iris[0]]).norm(dim=1) < 0.95 * RADIUS).float().mean() < 0.02


def test_gradients_reach_the_landmarks() -> None:
    driving = face((0.01, 0.0)).requires_grad_(True)
    _, flow = flows(driving, face())
    flow.square().sum().backward()
    assert driving.grad is not None
    assert all(driving.grad[0, iris[0]].abs().sum() > 0 for iris in IRISES)


def test_eyes_at_the_border_of_the_image_move_as_far_as_they_show() -> None:
    for shift in (-0.45, 0.45):
        driving = face((0.008, 0.0)) + shift
        elastic, flow = flows(driving, face())
        assert bool(flow.isfinite().all())
        assert flow.shape == elastic.shape


def test_half_precision_does_not_round_where_irises_are() -> None:
    """A rounded place would move an iris by a quarter of a pixel."""
    source, driving = face(), face((0.01, 0.0), tilt=7.0)
    elastic, exact = flows(driving, source)
    with torch.autocast("cpu", torch.bfloat16):
        made = rolled(elastic, elastic, driving, source[:, list(FACE)])
    assert (made - exact).abs().max() * SIZE / 2.0 < 0.02
