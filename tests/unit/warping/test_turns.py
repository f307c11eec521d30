"""Heads that turn far from their source."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.camera import Camera, from_pose, projected
from export3d.config import variant
from export3d.face.mesh import landmark_mirror_map
from export3d.warping.elastic_mesh import FACE
from export3d.warping.flows import driving_flow, mirrored_flow
from export3d.warping.landmark_motion import average_landmarks
from export3d.warping.turns import fading, far, fill, leaning, on_mesh, one_sided
from tests.tiny_models import PARTS, awake, inputs, landmarks, matte, warped

WHOLE = warped(*PARTS)


def camera(yaw: float = 0.0, pitch: float = 0.0) -> Tensor:
    return torch.from_numpy(Camera.orbit(yaw, pitch).label[None]).float()


@pytest.mark.parametrize(
    ("yaw", "pitch", "wanted"),
    [(0, 0, 0), (14, 0, 0), (22.5, 0, 0.5), (-22.5, 0, 0.5), (0, 22.5, 0.5), (31, 0, 1), (-90, 0, 1), (170, 0, 1)],
)
def test_a_turn_counts_from_15_degrees_and_fully_from_30(yaw: float, pitch: float, wanted: float) -> None:
    share = far(camera(), camera(yaw, pitch))
    assert share.shape == (1, 1, 1, 1)
    assert float(share) == pytest.approx(wanted, abs=1e-4)


def test_what_counts_is_the_angle_to_the_source_and_not_to_the_front() -> None:
    assert float(far(camera(40), camera(50))) == 0.0
    assert float(far(camera(-20), camera(20))) == 1.0


def test_rolling_a_head_is_not_turning_it() -> None:
    own, rolled = (torch.from_numpy(from_pose([[0.0, 0.0, roll]], [[0.0, 0.0, 2.7]])).float() for roll in (0.0, 60.0))
    assert not torch.allclose(own, rolled)
    assert float(far(own, rolled)) < 1e-4


def test_the_choice_leans_to_the_moved_image_only() -> None:
    logits = torch.randn(2, 4, 8, 8)
    share = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    face = torch.zeros(2, 1, 8, 8)
    face[..., 4:] = 1.0
    near, turned = leaning(logits, share, face, None, None).unbind()
    assert torch.equal(near, logits[0])
    before, after = logits[1].softmax(dim=0), turned.softmax(dim=0)
    assert (after[1] > before[1]).all()
    assert (after[0] < before[0]).all()
    for other in (2, 3):
        assert (after[other] / after[1] < before[other] / before[1]).all()
        assert (after[other, :, 5:] < 0.01).all()  # on the face hardly anything else is left


def test_where_the_head_has_left_no_image_shows_it() -> None:
    person = torch.zeros(2, 3, 32, 32)
    person[:, 0, :, :12] = person[:, 1, :, 8:24] = person[:, 2, :, :16] = 1.0  # the head has moved to the left
    share = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    near, turned = leaning(torch.zeros(2, 4, 8, 8), share, torch.zeros(2, 1, 8, 8), None, person).unbind()
    assert near.count_nonzero() == 0
    shown = turned.softmax(dim=0)[:, 4].T
    assert (shown[3:6, 2] < 1e-3).all(), "where the unmoved head was"
    assert shown[3, 3] < 1e-3
    assert (shown[[0, 1, 2, 6, 7], 2] > 0.02).all()
    assert (shown[4:, 3] > 0.02).all()


def test_an_open_mouth_keeps_what_was_learned_about_it() -> None:
    mouth = torch.zeros(2, 2, 32, 32)
    mouth[:, 0, 12:20, 12:20] = 1.0
    share, colour = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.rand(2, 3, 32, 32)
    near, turned = leaning(torch.zeros(2, 4, 8, 8), share, torch.ones(2, 1, 8, 8), mouth, None).unbind()
    assert near.count_nonzero() == 0
    assert (turned[0, 3:5, 3:5] == 0.0).all()
    assert (turned[0, 0] < 0.0).all()
    assert (turned[1] > 0.0).all()
    assert (turned[2:] < 0.0).all()
    near, turned = fading(colour, share, mouth).unbind()
    assert torch.equal(near, colour[0])
    assert torch.equal(turned[:, 12:20, 12:20], colour[1, :, 12:20, 12:20])
    assert turned[:, :12].count_nonzero() == 0
    assert fading(colour, share, None)[1].count_nonzero() == 0


def test_the_face_follows_the_mesh_where_the_mesh_is_not_stretched() -> None:
    flow, elastic = torch.zeros(2, 2, 64, 64), torch.ones(2, 2, 64, 64)
    face = torch.zeros(2, 64, 64, dtype=torch.bool)
    face[:, 8:56, 8:56] = True
    stretched = torch.zeros(2, 1, 64, 64)
    stretched[..., 40:] = 1.0
    near, turned = on_mesh(flow, elastic, face, stretched, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    assert torch.equal(near, flow[0])
    assert torch.equal(turned[:, 18:46, 18:33], elastic[1, :, 18:46, 18:33])
    assert torch.equal(turned[:, :, 46:], flow[1, :, :, 46:])
    assert torch.equal(turned[:, :6], flow[1, :, :6])
    assert torch.equal(turned[:, :, :6], flow[1, :, :, :6])


def test_the_mesh_tells_where_it_shows_the_face() -> None:
    view = camera(30)
    points = average_landmarks()[None]
    places, distance = projected(points, view)
    model = awake(WHOLE)
    source, expression, own = inputs(1)
    seen = model.encode(source, own, expression, landmarks(own), matte(source)).view
    face = driving_flow(places, distance, seen.face, 64)[2]
    nose = (places[0, 4] * 64).long()
    assert face.shape == (1, 64, 64)
    assert face[0, nose[1], nose[0]]
    assert not face[0, 0].any()
    assert 0.05 < face.float().mean() < 0.5


@pytest.mark.parametrize(("yaw", "wanted"), [(0, 0), (2, 0), (5.5, 0.5), (-5.5, 0.5), (9, 1), (-80, 1)])
def test_a_portrait_shows_one_half_of_the_face_too_little_from_3_degrees(yaw: float, wanted: float) -> None:
    assert float(one_sided(camera(yaw), camera(yaw + 30.0))) == pytest.approx(wanted, abs=1e-3)
    assert float(one_sided(camera(yaw), camera(yaw))) == 0.0
    assert float(one_sided(camera(0.0, 40.0), camera(30.0, 40.0))) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("yaw", [-25.0, 0.0, 25.0])
def test_the_flipped_source_shows_each_landmark_where_its_mirror_image_lies(yaw: float) -> None:
    own, view = camera(25), camera(yaw)
    points = average_landmarks()[None]
    source, expression, _ = inputs(1)
    seen = awake(WHOLE).encode(source, own, expression, landmarks(own), matte(source)).view
    places, distance = projected(points, view)
    flow = mirrored_flow(places, distance, seen.face, 256)
    middle = [4, 152, 10, 61, 291, 50, 280]
    at = 2 * places[:, middle] - 1
    found = at + F.grid_sample(flow, at[:, None], align_corners=False)[:, :, 0].mT
    other = 2 * seen.face.places[:, [FACE.index(n) for n in landmark_mirror_map()[middle]]] - 1
    wanted = other * torch.tensor([-1.0, 1.0])
    nearest = [0, 1, 2, 3, 4] if yaw == 0 else [0, 1, 2]
    torch.testing.assert_close(found[:, nearest], wanted[:, nearest], atol=0.02, rtol=0)


def test_the_other_half_is_shown_inside_the_face_where_it_is_stretched_less() -> None:
    face = torch.zeros(2, 64, 64, dtype=torch.bool)
    face[:, 8:56, 8:56] = True
    stretched, mirrored = torch.zeros(2, 1, 64, 64), torch.zeros(2, 1, 64, 64)
    stretched[..., 32:] = 0.9
    mirrored[:, :, 32:] = 0.9
    near, turned = fill(stretched, mirrored, face, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    assert near.count_nonzero() == 0
    assert (turned[0, 14:24, 42:50] == 1.0).all()
    assert turned[0, :, :16].count_nonzero() == 0
    assert turned[0, 48:].count_nonzero() == 0
    assert turned[0, 14:24, 56:58].min() > 0.4, "the outline goes along"


def test_the_other_half_takes_over_from_the_most_stretched_places_and_is_never_transparent_there() -> None:
    face = torch.ones(2, 64, 64, dtype=torch.bool)
    stretched = torch.full((2, 1, 64, 64), 0.4)
    stretched[..., 32:] = 0.9
    begun, turned = fill(stretched, torch.zeros_like(stretched), face, torch.tensor([0.3, 1.0]).view(2, 1, 1, 1))
    assert begun[0, :, :16].count_nonzero() == 0
    assert (begun[0, 8:56, 44:56] == 1.0).all()
    assert (turned[0, 8:56, 8:56] == 1.0).all()


def test_a_cheek_that_the_camera_hardly_saw_is_filled_from_the_other_one() -> None:
    """A source turned to one side and driven to the other: places of the hidden half come from the visible one."""
    turns, without = awake(WHOLE), awake(variant(WHOLE, "no_turns"))
    without.load_state_dict(turns.state_dict())
    source, expression, _ = inputs(1)
    own = camera(30)
    changed = []
    with torch.no_grad():
        planes = turns.planes(turns.encode(source, own, expression, landmarks(own), matte(source)), expression)
        for yaw in (30.0, -35.0):
            made = [m.warp.views(planes.source.view, planes.motion, camera(yaw)) for m in (turns, without)]
            changed.append(float((made[0].moved - made[1].moved).abs().mean()))
    assert changed[0] == 0.0
    assert changed[1] > 0.01


@pytest.mark.parametrize(("yaw", "same"), [(10.0, True), (45.0, False)])
def test_pictures_change_only_beyond_the_angle(yaw: float, same: bool) -> None:
    turns, without = awake(WHOLE), awake(variant(WHOLE, "no_turns"))
    without.load_state_dict(turns.state_dict())
    source, expression, own = inputs(1)
    found = []
    with torch.no_grad():
        for model in (turns, without):
            planes = model.planes(model.encode(source, own, expression, landmarks(own), matte(source)), expression)
            found.append(model.frame_and_share(planes, camera(yaw)))
    (image, drawn), (before, usual) = found
    assert torch.equal(image, before) == same
    assert same or drawn.mean() < usual.mean()
