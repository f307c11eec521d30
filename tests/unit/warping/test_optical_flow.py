"""The optical flow that teaches the warp."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export3d.errors import MissingExtra
from export3d.warping.flow_field import look_up
from export3d.warping.losses import optical_error
from export3d.warping.optical_flow import corrected

SIZE = 128


def texture(count: int = 1) -> Tensor:
    """(count, 3, SIZE, SIZE) smooth random patterns."""
    noise = torch.rand(count, 3, SIZE // 4, SIZE // 4) * 2 - 1
    return F.interpolate(noise, SIZE, mode="bicubic", align_corners=False).clamp(-1, 1)


def constant_flow(x_px: float, y_px: float, count: int = 1) -> Tensor:
    return torch.tensor([x_px, y_px]).view(1, 2, 1, 1).expand(count, 2, SIZE, SIZE) * (2.0 / SIZE)


@pytest.mark.parametrize("right", [(3.0, -2.0), (-4.0, 1.0)])
def test_a_flow_that_is_wrong_by_a_few_pixels_is_corrected(right: tuple[float, float]) -> None:
    source, wanted = texture(2), constant_flow(*right, count=2)
    offset = constant_flow(1.0, 1.0, count=2)
    found, known = corrected(offset, look_up(source, offset), look_up(source, wanted))
    inside = (slice(None), slice(None), slice(16, -16), slice(16, -16))
    assert found.shape == (2, 2, SIZE, SIZE)
    assert known.shape == (2, 1, SIZE, SIZE)
    assert known[inside].mean() > 0.9
    off = (found - wanted)[inside].abs().amax(dim=1)[known[inside][:, 0] > 0]
    assert off.median() < 0.25 * 2.0 / SIZE


def test_where_nothing_explains_the_frame_nothing_is_taught() -> None:
    source, offset = texture(), constant_flow(0.0, 0.0)
    other = texture()
    assert corrected(offset, source, other)[1].mean() < 0.2
    assert corrected(offset, source, source)[1].sum() == 0.0
    assert optical_error(offset, source, source) == 0.0


def test_the_error_falls_towards_the_right_flow_and_has_a_gradient() -> None:
    source, wanted = texture(), constant_flow(3.0, 0.0)
    frame = look_up(source, wanted)
    errors = []
    for part in (0.0, 0.5, 1.0):
        offset = (part * wanted).clone().requires_grad_()
        error = optical_error(offset, look_up(source, offset).detach(), frame)
        errors.append(float(error.detach()))
        error.backward()
        assert offset.grad is not None
    assert errors[0] > 1.5 * errors[1] > 10 * errors[2]


def test_without_opencv_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match=r"OpenCV.*\[train\]"):
        corrected(constant_flow(0, 0), texture(), texture())
