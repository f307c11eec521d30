"""The elastic sheet on a canonical face: at rest, moved, painted, differentiated; its painter against a slow twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import export3d.camera as cameras
from export3d import layers
from export3d.errors import ShapeError
from export3d.evaluation.protocols.references import expression_motion
from export3d.face.landmark_sets import EYE_CORNERS, INNER_LIPS, LOWER_LIDS, UPPER_LIDS
from export3d.face.mesh import canonical_mesh
from export3d.face.repose import rasterise
from export3d.motion.arkit import ARKIT52
from export3d.warping import elastic_mesh as sheets
from export3d.warping.elastic_mesh import FACE, ElasticMesh, paint, show, similarity, softened

SIZE = 128
MARKS = (4, 13, 50, 133, 280, 468, 469)
"""Vertices of the sheet: nose tip, upper lip, cheek, corner of an eye, other cheek, both irises."""


def label(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    return cameras.from_pose(np.array([yaw, pitch, roll]), np.array([x, y, 2.7]))


def seen(*labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Faces (B, 470, 2), 0..1, and the distances (B, 470) of the canonical mesh as cameras see it."""
    mesh = canonical_mesh().vertices
    face = np.concatenate([mesh, [mesh[list(corners)].mean(axis=0) for corners in EYE_CORNERS]])
    places = np.stack([cameras.project(face, one) for one in labels])
    views = [cameras.unpack(one)[0] for one in labels]
    distance = np.stack([(face - view[:3, 3]) @ view[:3, 2] for view in views])
    return torch.from_numpy(places).float(), torch.from_numpy(distance).float()


def pixels(size: int = SIZE) -> Tensor:
    """(size, size, 2) the pixels' own places, 0..1."""
    centre = (torch.arange(size) + 0.5) / size
    return torch.stack(torch.meshgrid(centre, centre, indexing="xy"), dim=-1)


def waves(size: int = SIZE) -> Tensor:
    """(1, 3, size, size) in -1..1, of about 15 pixels."""
    x, y = (pixels(size) * size * 2 * np.pi / 15).unbind(-1)
    return torch.stack([x.sin(), y.cos(), (0.7 * x + 0.7 * y).sin()])[None]


def dot(place: Tensor, size: int = SIZE) -> Tensor:
    """(1, 1, size, size): a bright mark of two pixels at a place."""
    return torch.exp(-((pixels(size) - place).square().sum(-1) * size**2) / (2 * 2.0**2))[None, None]


def opened(face: Tensor) -> Tensor:
    """The frontal face with its jaw let down."""
    scores = np.zeros((2, 52))
    scores[1, ARKIT52.index("jawOpen")] = 0.6
    mesh = canonical_mesh().vertices
    mesh = np.concatenate([mesh, [mesh[list(corners)].mean(axis=0) for corners in EYE_CORNERS]])
    places = cameras.project(mesh + expression_motion(mesh, *scores), label())
    return torch.from_numpy(places[None]).to(face)


CAMERAS = [label(), label(20, -8, 5, 0.03), label(-25, 10, 8), label(0, -15, 0, -0.04, 0.03)]


def test_the_face_is_the_mesh_and_the_middles_of_the_irises() -> None:
    assert (*range(468), 468, 473) == FACE
    for (outer, inner), upper, lower in zip(EYE_CORNERS, UPPER_LIDS, LOWER_LIDS):
        mesh = canonical_mesh().vertices
        assert abs(mesh[outer, 0]) > abs(mesh[inner, 0])
        assert (mesh[list(upper), 1] < mesh[list(lower), 1]).all()  # y points down


@pytest.mark.parametrize("size", [32, 97])
def test_a_sheet_at_rest_shows_the_picture_itself(size: int) -> None:
    face, depth = seen(*CAMERAS)
    lookup, mouth = ElasticMesh(face).lookup(face, depth, size)
    torch.testing.assert_close(lookup, pixels(size).expand(4, -1, -1, -1), atol=1e-5, rtol=0)
    assert mouth.shape == (4, size, size)
    image = torch.rand(4, 3, size, size)
    torch.testing.assert_close(show(image, lookup), image, atol=2e-3, rtol=0)


@pytest.mark.parametrize("camera", CAMERAS[1:])
@pytest.mark.parametrize("mark", MARKS)
def test_landmarks_land_where_asked(camera: np.ndarray, mark: int) -> None:
    """What is shown at a landmark's new place is what the source has at its old one."""
    face, depth = seen(label(), camera)
    before, after = face
    lookup, _ = ElasticMesh(face[:1]).lookup(face[1:], depth[1:], SIZE)
    picture = show(dot(before[mark]), lookup)[0, 0]
    bright = picture**8  # where it is brightest: about the nose a mark is stretched on one side, hidden on the other
    centre = (bright[..., None] * pixels()).sum(dim=(0, 1)) / bright.sum()
    assert (before[mark] - after[mark]).norm() * SIZE > 2
    assert (centre - after[mark]).norm() * SIZE < 1


def test_a_few_landmarks_that_move_alone_take_only_their_surroundings_along() -> None:
    face, depth = seen(label())
    moved = face.clone()
    moved[:, 280] += torch.tensor([0.02, -0.015])
    lookup, _ = ElasticMesh(face).lookup(moved, depth, SIZE)
    change = (lookup - pixels()).norm(dim=-1)[0]
    column, row = (moved[0, 280] * SIZE).long().tolist()
    assert change[row, column] * SIZE > 1.5
    far = (pixels() - face[0, 280]).norm(dim=-1) > 0.1
    assert change[far].max() * SIZE < 0.02


@pytest.mark.parametrize("away", [label(80), label(0, -50), label(0, 0, 170), label(x=0.6, y=-0.5)])
def test_no_motion_however_wild_leaves_holes(away: np.ndarray) -> None:
    face, depth = seen(label(), away)
    lookup, _ = ElasticMesh(face[:1]).lookup(face[1:], depth[1:], SIZE)
    assert lookup.isfinite().all()
    assert lookup.min() > -1.5
    assert lookup.max() < 2.5
    assert show(torch.full((1, 3, SIZE, SIZE), 0.7), lookup).min() > 0.7 - 1e-5


def test_each_of_a_batch_is_as_it_is_alone() -> None:
    face, depth = seen(*CAMERAS)
    moved, away = face.roll(1, 0), depth.roll(1, 0)
    image = torch.rand(4, 3, SIZE, SIZE)
    lookup, mouth = ElasticMesh(face).lookup(moved, away, SIZE)
    picture = show(image, lookup)
    for b in range(4):
        one = slice(b, b + 1)
        alone, between = ElasticMesh(face[one]).lookup(moved[one], away[one], SIZE)
        torch.testing.assert_close(lookup[one], alone, atol=1e-5, rtol=0)
        assert torch.equal(mouth[one], between)
        torch.testing.assert_close(picture[one], show(image[one], alone), atol=1e-3, rtol=0)
    shared = show(image[:1], lookup)
    torch.testing.assert_close(shared, show(image[:1].expand(4, -1, -1, -1), lookup))


@pytest.mark.parametrize("camera", [label(60), label(-45, 20), label(0, 35)])
def test_a_turned_face_hides_itself_as_a_z_buffer_sees_it(camera: np.ndarray) -> None:
    face, depth = seen(label(), camera)
    lookup, _ = ElasticMesh(face[:1]).lookup(face[1:], depth[1:], SIZE)
    triangles = np.array(sheets._face_triangles(False)[0])
    index, weights = rasterise(face[1].double().numpy() * SIZE, depth[1].double().numpy(), triangles, SIZE)
    expected = (weights[..., None] * face[0].numpy()[triangles[index]]).sum(axis=2)
    wrong = np.linalg.norm(lookup[0].numpy() - expected, axis=-1)[index >= 0] * SIZE > 1
    hidden = 1.0 - len(np.unique(index[index >= 0])) / len(triangles)
    assert hidden > 0.1
    assert wrong.mean() < 0.02


def test_only_what_lies_between_the_lips_is_mouth() -> None:
    face, depth = seen(label())
    wide, lips = opened(face), list(INNER_LIPS)
    _, shut = ElasticMesh(face).lookup(face, depth, SIZE)
    _, mouth = ElasticMesh(face).lookup(wide, depth, SIZE)
    assert 3 * shut.sum() < mouth.sum()
    column, row = (wide[0, [13, 14]].mean(0) * SIZE).long().tolist()
    assert mouth[0, row, column]
    inside = pixels()[mouth[0]]
    assert (inside > wide[0, lips].amin(0)).all()
    assert (inside < wide[0, lips].amax(0)).all()


# ---- around the face -------------------------------------------------------------------------------------------------


def rings(sheet: ElasticMesh, face: Tensor) -> Tensor:
    """How far the rings move, (12, 36, 2) widths of the picture, from the innermost."""
    return (sheet.place(face) - sheet.source)[0, 470:-3].view(12, 36, 2)


def test_hair_follows_the_head_less_and_less() -> None:
    face, _ = seen(label())
    sheet, step = ElasticMesh(face), torch.tensor([0.08, 0.0])
    torch.testing.assert_close((sheet.place(face + step) - sheet.source)[0, :470], step.expand(470, 2))
    moved = rings(sheet, face + step)
    assert moved[..., 1].abs().max() < 1e-5
    assert (moved[..., 0].diff(dim=0) < 1e-5).all()
    assert (moved[0, :, 0] > 0.07).all()
    assert torch.equal(moved[-1], torch.zeros(36, 2))
    assert torch.equal((sheet.place(face + step) - sheet.source)[0, -4:], torch.zeros(4, 2))


def test_a_head_that_tilts_takes_its_hair_along_and_a_small_bump_does_not() -> None:
    """A turn is felt beyond the outline in full; one landmark of the outline soon no more."""
    face, _ = seen(label())
    sheet, angle = ElasticMesh(face), np.radians(5)
    turn = torch.tensor([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]).float()
    at_rest, middle = sheet.source[0, 470:-3].view(12, 36, 2), face.mean(dim=1)
    whole = (at_rest - middle) @ turn + middle - at_rest
    torch.testing.assert_close(rings(sheet, (face - middle) @ turn + middle)[0], whole[0], atol=0.002, rtol=0)
    bump = face.clone()
    bump[:, 10, 1] -= 0.08
    felt = rings(sheet, bump).norm(dim=-1)
    assert felt[0].max() > 0.02
    assert felt[6].max() < 0.004


def test_a_face_of_another_kind_is_refused() -> None:
    with pytest.raises(ShapeError, match="face of the mesh"):
        ElasticMesh(torch.zeros(1, 478, 2))


def test_the_similarity_of_a_face_that_also_changes_is_the_nearest() -> None:
    before, after = torch.rand(2, 2, 40, 2)
    turn, shift = similarity(before, after)

    def error(turn: Tensor, shift: Tensor) -> Tensor:
        return (before @ turn + shift - after).square().sum(dim=(1, 2))

    least = error(turn, shift)
    spin, grow = torch.tensor([[0.0, 0.05], [-0.05, 0.0]]), 0.05 * torch.eye(2)
    centre = before.mean(dim=1, keepdim=True)
    for change in (spin, -spin, grow, -grow):
        assert (error(turn + change, shift - centre @ change) > least).all()
    for move in 0.02 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]):
        assert (error(turn, shift + move) > least).all()


# ---- the painter -----------------------------------------------------------------------------------------------------


def shaken_grid(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places (81, 2) of a grid with its vertices shaken, beyond a picture of 0..1; what they carry; 128 triangles."""
    steps = np.linspace(-0.1, 1.1, 9)
    places = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    places += rng.uniform(-0.04, 0.04, places.shape)
    corner = np.arange(81).reshape(9, 9)
    a, b, c, d = (part.ravel() for part in (corner[:-1, :-1], corner[:-1, 1:], corner[1:, :-1], corner[1:, 1:]))
    return places, rng.uniform(0, 1, places.shape), np.concatenate([np.stack([a, b, c], 1), np.stack([d, c, b], 1)])


def test_triangles_side_by_side_are_painted_as_a_z_buffer_sees_them(rng: np.random.Generator) -> None:
    """The slow twin agrees at every pixel, for each of a batch."""
    made = [shaken_grid(rng) for _ in range(3)]
    triangles = made[0][2]
    places, carried = (torch.from_numpy(np.stack([one[k] for one in made])) for k in (0, 1))
    order = torch.arange(128).expand(3, -1)
    shown, number = paint(places, carried, torch.from_numpy(triangles), order, 40)
    for b in range(3):
        index, weights = rasterise(made[b][0] * 40, np.zeros(81), triangles, 40)
        assert (index >= 0).all()
        expected = np.einsum("yxk,yxkc->yxc", weights, made[b][1][triangles[index]])
        np.testing.assert_allclose(shown[b], expected, atol=1e-5)
        assert (number[b].numpy() == index).mean() > 0.999


def test_the_last_triangle_lies_on_top() -> None:
    places = torch.tensor([[0.0, 0.0], [2.5, 0.0], [0.0, 2.5], [0.5, 0.5], [1.5, 0.5], [0.5, 1.5]])[None]
    triangles = torch.tensor([[0, 1, 2], [3, 4, 5]])
    for order, top in (([0, 1], 1), ([1, 0], 0)):
        _, number = paint(places, places, triangles, torch.tensor([order]), 8)
        assert number[0, 6, 6] == top
        assert number[0, 1, 1] == 0


def test_a_triangle_without_area_is_not_painted() -> None:
    places = torch.tensor([[-1.0, -1.0], [3.0, -1.0], [-1.0, 3.0], [0.1, 0.5], [0.5, 0.5], [0.9, 0.5]])[None]
    shown, number = paint(places, places, torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[0, 1]]), 9)
    assert (number == 0).all()
    torch.testing.assert_close(shown[0], pixels(9), atol=1e-5, rtol=0)


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gradients_of_the_painter_are_those_of_finite_differences(rng: np.random.Generator) -> None:
    places, carried, triangles = shaken_grid(rng)
    given = [torch.from_numpy(x[None]).requires_grad_() for x in (places, carried)]
    order = torch.arange(128)[None]

    def painted(where: Tensor, texture: Tensor) -> Tensor:
        return paint(where, texture, torch.from_numpy(triangles), order, 7)[0]

    assert torch.autograd.gradcheck(painted, given, eps=1e-7, atol=1e-4)


def test_a_picture_pulls_its_landmarks_to_their_place() -> None:
    """Gradients reach places and picture, and a step along them comes nearer."""
    face, depth = seen(label(), label(10))
    sheet, image, moved = ElasticMesh(face[:1]), waves().requires_grad_(), face[1:].clone().requires_grad_()
    wanted = image.detach()

    def error(places: Tensor) -> Tensor:
        return (show(image, sheet.lookup(places, depth[1:], SIZE)[0]) - wanted).square().mean()

    first = error(moved)
    first.backward()
    for tensor in (moved, image):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.count_nonzero() > 100
    with torch.no_grad():
        step = moved.grad * (1e-3 / moved.grad.abs().max())
        assert error(moved - step) < first < error(moved + step)


def test_a_sheet_first_used_for_inference_can_be_trained_later() -> None:
    face, depth = seen(label())
    layers._constants.clear()
    with torch.inference_mode():
        ElasticMesh(face).lookup(face, depth, 16)
    places = face.clone().requires_grad_()
    ElasticMesh(face).lookup(places, depth, 16)[0].square().sum().backward()
    assert places.grad is not None


# ---- showing ---------------------------------------------------------------------------------------------------------


def test_what_is_looked_up_more_densely_comes_from_half_the_size() -> None:
    """A chessboard of single pixels, shown at half its size, is grey, not a pattern of its own."""
    board = ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float().expand(1, 1, 64, 64)
    lookup = (pixels(64) * 2.0 - 0.5 + 0.3 / 64)[None]
    inner = show(board, lookup)[..., 18:46, 18:46]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), atol=0.02, rtol=0)


def test_what_lands_between_pixels_stays_sharp() -> None:
    """Bilinear, stripes of three pixels lose 13% of their contrast half a pixel beside their place."""
    stripes = torch.cos(torch.arange(64) * (torch.pi / 3.0)).expand(1, 1, 64, 64)
    shifted = show(stripes, pixels(64)[None] + torch.tensor([0.5 / 64, 0.0]))[..., 8:56, 8:56]
    assert 0.93 < shifted.std() / stripes[..., 8:56].std() < 1.0
    torch.testing.assert_close(show(stripes, pixels(64)[None]), stripes, atol=1e-5, rtol=0)


def test_an_edge_where_the_sheet_jumps_is_softened() -> None:
    image, lookup = waves(), pixels()[None].clone()
    lookup[:, :, SIZE // 2 :, 0] += 0.1
    found, plain = show(image, lookup), show(image, pixels()[None])
    edge = slice(SIZE // 2 - 1, SIZE // 2 + 1)
    assert not torch.allclose(found[..., edge], plain[..., edge], atol=1e-2)
    torch.testing.assert_close(found[..., 2 : SIZE // 2 - 1], plain[..., 2 : SIZE // 2 - 1], atol=1e-4, rtol=0)


def test_softening_keeps_the_mean_and_weighs_1_2_1() -> None:
    spot = torch.zeros(1, 2, 5, 5)
    spot[:, :, 2, 2] = 16.0
    expected = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])
    torch.testing.assert_close(softened(spot)[0, 1, 1:-1, 1:-1], expected)
    torch.testing.assert_close(softened(torch.full((1, 1, 4, 4), 0.3)), torch.full((1, 1, 4, 4), 0.3))


# ---- export ----------------------------------------------------------------------------------------------------------


class Lookup(torch.nn.Module):
    def forward(self, rest: Tensor, face: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        return ElasticMesh(rest).lookup(face, depth, 32)


@pytest.mark.slow
@pytest.mark.parametrize("away", [label(x=0.05), label(70, 20, 30)])
def test_an_exported_mesh_of_any_batch_paints_the_same(away: np.ndarray) -> None:
    """Its shapes are known in advance, whatever the faces."""
    face, depth = seen(*CAMERAS, away)
    batch = torch.export.Dim("batch", min=1, max=64)
    given = face[:2], face[2:4], depth[2:4]
    program = torch.export.export(Lookup(), given, dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
    for count in (1, 5):
        rest, moved, far = face[:1].expand(count, -1, -1).contiguous(), face[-count:], depth[-count:]
        lookup, mouth = Lookup()(rest, moved, far)
        exported, between = program.module()(rest, moved, far)
        torch.testing.assert_close(exported, lookup, atol=1e-6, rtol=0)
        assert torch.equal(between, mouth)
