"""Teeth that keep their size when a mouth opens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from export3d.camera import projected
from export3d.config import variant
from export3d.face.landmark_sets import INNER_LIPS
from export3d.warping.flows import mouth_mask
from export3d.warping.landmark_motion import average_landmarks
from export3d.warping.source_warp import SourceMotion
from export3d.warping.teeth import chosen, unstretched, upper_teeth
from tests.tiny_models import PARTS, awake, cameras, inputs, warped

WHOLE = warped(*PARTS)
LOWER = INNER_LIPS[11:]


def gaping(gap: float) -> Tensor:
    """(1, 478, 3) the average face with such a gap between its lips, in distances of the outer eye corners."""
    points = average_landmarks().clone().reshape(1, -1, 3)
    upper, lower = list(INNER_LIPS[1:10]), list(reversed(LOWER))
    points[:, lower] = points[:, upper]
    down = torch.tensor([0.0, -1.0 if points[0, 10, 1] > points[0, 152, 1] else 1.0, 0.0])
    points[:, lower] += gap * (points[0, 33] - points[0, 263]).norm() * down
    return points


def masks(driving: slice, source: slice) -> Tensor:
    """(1, 2, 128, 128): mouths across the middle, open in these rows."""
    mouth = torch.zeros(1, 2, 128, 128)
    mouth[:, 0, driving, 32:96] = 1.0
    mouth[:, 1, source, 32:96] = 1.0
    return mouth


@pytest.mark.parametrize(
    ("own", "driven", "share"),
    [
        (0.0, 0.4, 0.0),  # the source shows no teeth
        (0.06, 0.4, 0.0),
        (0.08, 0.4, 0.5),
        (0.12, 0.12, 0.0),
        (0.12, 0.17, 0.0),  # as good as not wider
        (0.12, 0.205, 0.5),
        (0.12, 0.3, 1.0),
        (0.3, 0.1, 0.0),  # closing
    ],
)
def test_a_mouth_counts_as_opened_where_it_gets_wider_than_one_that_shows_teeth(
    own: float, driven: float, share: float
) -> None:
    teeth = upper_teeth(gaping(driven), gaping(own), masks(slice(40, 90), slice(40, 60)))
    assert teeth.shape == (1, 2, 128, 128)
    assert float(teeth.sum(dim=1).max()) == pytest.approx(share, abs=1e-3)


def test_teeth_are_where_both_mouths_are_open_and_the_hollow_is_below() -> None:
    kept, hollow = upper_teeth(gaping(0.4), gaping(0.12), masks(slice(44, 90), slice(40, 60)))[0]
    assert (kept[46:57, 36:92] == 1.0).all()
    assert kept[61:].count_nonzero() == 0
    assert (hollow[62:88, 36:92] == 1.0).all()
    assert kept[:43].count_nonzero() == hollow[:43].count_nonzero() == 0
    assert (kept + hollow)[91:].count_nonzero() == 0
    assert kept[50, 32] < 1.0  # the edge of the source's mouth is lip


def test_the_moved_source_loses_its_stretched_teeth() -> None:
    teeth = torch.zeros(1, 2, 8, 8)
    teeth[:, 0, 2:4], teeth[:, 1, 4:6] = 1.0, 1.0
    moved, stretched, turned = torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8), torch.rand(1, 3, 8, 8)
    image, far = unstretched(teeth, moved, stretched, turned)
    assert torch.equal(image[:, :, :2], moved[:, :, :2])
    assert torch.equal(far[:, :, 6:], stretched[:, :, 6:])
    assert torch.equal(image[:, :, 2:4], turned[:, :, 2:4])
    assert far[:, :, 2:4].count_nonzero() == 0
    assert (image[:, :, 4:6] < -0.5).all()
    assert (far[:, :, 4:6] == 1.0).all()


def test_the_choice_is_the_turned_source_at_teeth_and_rendered_in_the_hollow() -> None:
    share = torch.rand(2, 4, 8, 8).softmax(dim=1)
    teeth = torch.zeros(2, 2, 8, 8)
    teeth[:, 0, 2:4], teeth[:, 1, 4:6], teeth[:, 0, 6] = 1.0, 1.0, 0.5
    made = chosen(teeth, share)
    torch.testing.assert_close(made.sum(dim=1), torch.ones(2, 8, 8))
    assert torch.equal(made[:, :, :2], share[:, :, :2])
    assert (made[:, 3, 2:4] == 1.0).all()
    assert (made[:, 0, 4:6] == 1.0).all()
    torch.testing.assert_close(made[:, :3, 6], share[:, :3, 6] / 2)


@pytest.mark.parametrize("driven", [0.4, 0.8])
def test_a_picture_changes_only_in_a_mouth_that_opens(driven: float) -> None:
    """With its own expression, and outside the mouth, every pixel stays as it is without the part."""
    own, camera = gaping(0.4), cameras(1)
    source, expression, _ = inputs(1)
    made = {}
    with torch.no_grad():
        model = awake(WHOLE)
        for name in ("teeth", "no_teeth"):
            other = awake(variant(WHOLE, name))
            other.load_state_dict(model.state_dict())
            encoded = other.encode(source, camera, expression, projected(own, camera)[0])
            points = gaping(driven) if driven > 0.4 else encoded.view.face.points
            made[name] = other.warp.views(encoded.view, SourceMotion(points), camera)
    with_teeth, without = made["teeth"], made["no_teeth"]
    assert without.teeth is None
    changed = (with_teeth.moved - without.moved).abs().amax(dim=1)[0]
    if driven == 0.4:
        assert changed.count_nonzero() == 0
        return
    mouth = mouth_mask(projected(gaping(driven), camera)[0], 64)[0, 0]
    near = torch.nn.functional.max_pool2d(mouth[None], 7, 1, 3)[0]
    assert changed[mouth > 0].max() > 0.1
    assert changed[near == 0].count_nonzero() == 0
    kept = with_teeth.teeth[0, 0] == 1.0
    assert kept.any()
    torch.testing.assert_close(with_teeth.moved[0][:, kept], with_teeth.turned[0][:, kept])
    torch.testing.assert_close(with_teeth.offset[0][:, kept], with_teeth.turn[0][:, kept])
