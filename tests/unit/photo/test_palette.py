"""The palette: images of a grey or toned photo keep its colours, those of a colour photo stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from export3d.animate.animator import Animator
from export3d.face.landmark_sets import FACE_OVAL
from export3d.image import to_tensor
from export3d.photo.palette import Palette, palette
from export3d.warping.origin import Origin

Picture = np.ndarray
SIZE = 64


def places() -> Tensor:
    """A round face mesh in the middle of the crop."""
    angle = torch.linspace(0.0, 2.0 * torch.pi, len(FACE_OVAL) + 1)[:-1]
    mesh = torch.full((1, 470, 2), 0.5)
    mesh[0, list(FACE_OVAL)] = 0.5 + 0.35 * torch.stack([angle.sin(), -angle.cos()], dim=1)
    return mesh


def origin_of(source: Tensor, share: float) -> Origin:
    """As if each pixel took this share of the source's pixel at its own place."""
    ones = torch.ones_like(source[:, :1])
    return Origin(torch.zeros_like(source[:, :2]), ones, share * torch.cat([source, ones], dim=1))


def grey(image: Picture) -> Picture:
    return np.array(Image.fromarray(image).convert("L").convert("RGB"))


def toned(image: Picture) -> Picture:
    """From a dark brown to cream, as old prints are."""
    return np.array(ImageOps.colorize(Image.fromarray(image).convert("L"), "#281a10", "#fff4dc", mid="#a08060"))


def chroma(image: Picture) -> Picture:
    return np.ptp(image.astype(int), axis=-1)


def luma(image: Tensor) -> Tensor:
    return (image * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1)


@pytest.fixture
def face(astronaut: np.ndarray) -> Picture:
    """The middle of the bundled portrait's face, uint8 (64, 64, 3)."""
    return np.array(Image.fromarray(astronaut[70:200, 160:290]).resize((SIZE, SIZE), Image.Resampling.BOX))


def of(image: Picture) -> tuple[Tensor, Palette]:
    source = to_tensor(image)[None]
    return source, palette(source, places())


def test_a_colour_photo_is_free_and_its_images_stay_to_the_bit(face: Picture) -> None:
    source, made = of(face)
    assert made.freedom == 1.0
    image = torch.rand_like(source)
    assert made.kept(image, origin_of(source, 0.5)) is image


def test_freedom_falls_steadily_from_colour_to_grey(face: Picture) -> None:
    shades = [np.round(grey(face) + part * (face - grey(face).astype(float))) for part in np.linspace(1, 0, 41)]
    found = [of(shade.astype(np.uint8))[1].freedom for shade in shades]
    assert found[0] == 1.0
    assert found[-1] == 0.0
    assert found == sorted(found, reverse=True)
    assert max(-np.diff(found)) < 0.6, "there is no cliff"


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_images_of_a_grey_photo_are_grey_and_keep_their_luma(face: Picture, share: float) -> None:
    source, made = of(grey(face))
    image = 1.6 * torch.rand_like(source) - 0.8
    kept = made.kept(image, origin_of(source, share))
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert torch.equal(kept[:, 0], kept[:, 2])
    torch.testing.assert_close(luma(kept), luma(image), rtol=0, atol=1e-5)


def test_what_is_rendered_of_a_toned_photo_has_the_tone_of_its_luma(face: Picture) -> None:
    source, made = of(toned(face))
    assert made.freedom == 0.0
    ramp = torch.linspace(-0.6, 0.6, SIZE).expand(1, 3, SIZE, SIZE)
    kept = made.kept(ramp, origin_of(source, 0.0))
    values = luma(kept)[0, 0].add(1.0).mul(127.5)
    table = toned(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))[0].astype(float)
    brightness = table @ [0.299, 0.587, 0.114]
    expected = np.stack([np.interp(values, brightness, table[:, channel]) for channel in range(3)])
    assert np.abs(kept[0, :, 0].add(1.0).mul(127.5).numpy() - expected).max() < 4.0


def test_colours_beside_a_grey_face_stay_where_the_source_is_shown(face: Picture) -> None:
    image = grey(face)
    image[:, :6] = (200, 40, 60)  # outside the face
    source, made = of(image)
    assert made.freedom == 0.0
    torch.testing.assert_close(made.kept(source, origin_of(source, 1.0)), source, rtol=0, atol=1e-5)
    assert float((made.kept(source, origin_of(source, 0.0)) - luma(source)[:, None]).abs().max()) < 1e-5


@pytest.mark.slow
def test_a_grey_portrait_stays_grey_with_the_packaged_weights(astronaut: np.ndarray) -> None:
    animator = Animator.from_pretrained(device="cpu")
    source = animator.encode(grey(astronaut))
    wanted = {"scores": {"jawOpen": 0.8}, "yaw_deg": 15.0}
    crop, photo = animator.edit(source, **wanted), animator.edit(source, **wanted, frame="photo")  # type: ignore[arg-type]
    assert chroma(crop).max() == chroma(photo).max() == 0
    assert np.abs(crop.astype(int) - source.image).mean() > 2.0, "the face moves"


def test_models_without_the_sources_pixels_have_no_palette(tiny_weights: object, astronaut: np.ndarray) -> None:
    assert Animator.from_pretrained(tiny_weights, device="cpu").encode(astronaut).palette is None  # type: ignore[arg-type]
