"""The parts, put together, are the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from export3d.config import ModelConfig, preset
from export3d.engines import parts
from export3d.model import Export3D
from export3d.warping.landmark_motion import Regions
from tests.tiny_models import PARTS, awake, warped

WARPS = {
    "no warp": (),
    "all": PARTS,
    "aligned": ("align",),
    "core": ("align", "skip"),
    "flow alone": ("skip", "flow"),
    "detail alone": ("align", "detail"),
    "no flow": ("align", "skip", "detail", "dense", "mouth"),
}


def run(part: parts.Part, known: dict[str, Tensor]) -> None:
    """Add the outputs of a part to what is known."""
    known |= dict(zip(part.outputs, part(*(known[name] for name in part.inputs)), strict=True))


def by_model(model: Export3D, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    encoded = model.encode(**{name: given[name] for name in parts.source_inputs(model)})
    regions = Regions(given["regions.asked"], given["regions.own"], given["regions.share"])
    planes = model.planes(encoded, given["expression"], given["shift"], regions).with_shoulders(given["shoulders"])
    return planes.triplane, model.frame(planes, given["camera"])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("warp", WARPS)
@torch.no_grad()
def test_parts_make_the_models_frames(warp: str, batch: int) -> None:
    model = awake(warped(*WARPS[warp]))
    given = parts.examples(model, batch)
    triplane, image = by_model(model, given)
    known = dict(given)
    for part in (parts.SourceEncoder(model), parts.planes_part(model), parts.frame_part(model)):
        run(part, known)
    torch.testing.assert_close(known["triplane"], triplane)
    torch.testing.assert_close(known["image"], image)


@torch.no_grad()
def test_without_a_basis_the_shift_is_of_the_embedding() -> None:
    from dataclasses import replace

    config: ModelConfig = preset("tiny")
    model = awake(replace(config, expression=replace(config.expression, basis=False, frozen=False)))
    known = parts.examples(model, 2)
    expected = model.expression.embed(model.expression.coefficients(known["expression"]) + known["shift"])
    run(parts.ExpressionMotion(model), known)
    torch.testing.assert_close(known["beta"], expected)


@torch.no_grad()
def test_a_source_survives_being_taken_apart() -> None:
    model = awake(warped(*PARTS))
    given = parts.examples(model, 1)
    encoded = model.encode(**{name: given[name] for name in parts.source_inputs(model)})
    named = parts.tensors(encoded)
    again = parts.tensors(parts.rebuilt(encoded, {name: value + 1 for name, value in named.items()}))
    assert list(again) == list(named)
    assert all(torch.equal(again[name], named[name] + 1) for name in named)


def test_parts_leave_the_model_as_it_is() -> None:
    model = awake(warped(*PARTS))
    before = [name for name, _ in model.named_modules()]
    parts.SourceEncoder(model)
    parts.planes_part(model)
    assert [name for name, _ in model.named_modules()] == before
