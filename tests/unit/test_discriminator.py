"""The discriminator: what it is told, what it can be trained on, twice."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from export3d.camera import Camera
from export3d.discriminator import (
    PRESETS,
    Discriminator,
    DiscriminatorConfig,
    EqualConv,
    EqualLinear,
    discriminator_config,
    low_pass,
    minibatch_deviation,
)
from export3d.errors import ConfigError, ShapeError
from export3d.losses import discrimination, r1_penalty

TINY = discriminator_config("tiny", 16)


def cameras(*yaws: float) -> Tensor:
    """(B, 25) labels of cameras that see heads turned by these degrees."""
    return torch.stack([torch.from_numpy(Camera.orbit(yaw).label).float() for yaw in yaws])


def pictures(batch: int, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Final and raw pictures and cameras."""
    image, raw = torch.rand(batch, 3, size, size) * 2 - 1, torch.rand(batch, 3, size // 4, size // 4) * 2 - 1
    return image, raw, cameras(*range(0, 5 * batch, 5))


@pytest.mark.parametrize("size", [16, 64, 128, 256])
def test_one_score_a_picture_at_every_size(size: int) -> None:
    scores = Discriminator(discriminator_config("tiny", size))(*pictures(2, size))
    assert scores.shape == (2,)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()


@pytest.mark.slow
def test_the_full_size_is_the_published_one() -> None:
    config = discriminator_config("full", 256)
    assert [config.channels(grid) for grid in (256, 128, 64, 32, 4)] == [128, 256, 512, 512, 512]
    assert config == DiscriminatorConfig()
    with torch.device("meta"):
        count = sum(p.numel() for p in Discriminator(config).parameters())
    # Counted by hand: six blocks, entrance (6 channels), epilogue, mapping of 8 + 1 layers.
    widths = [128, 256, 512, 512, 512, 512, 512]
    blocks = sum(9 * a * a + a + 9 * a * b + b + a * b for a, b in pairwise(widths))
    epilogue = 9 * 513 * 512 + 512 + 512 * 16 * 512 + 512 + 512 * 512 + 512
    mapping = 25 * 512 + 512 + 8 * (512 * 512 + 512)
    assert count == 6 * 128 + 128 + blocks + epilogue + mapping


def test_presets_are_ordered_by_size() -> None:
    def count(name: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in Discriminator(discriminator_config(name, 64)).parameters())

    assert list(PRESETS) == ["full", "small", "tiny"]
    assert count("full") > 10 * count("small") > 100 * count("tiny")


@pytest.mark.parametrize("size", [96, 8, 100])
def test_sizes_that_cannot_be_halved_down_are_refused_with_those_that_can(size: int) -> None:
    with pytest.raises(ConfigError, match="64, 128 or 256"):
        discriminator_config("tiny", size)


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="full, small, tiny"):
        discriminator_config("huge", 64)


@pytest.mark.parametrize("changes", [{"channel_max": 0}, {"group": 0}, {"mapping_layers": -1}, {"mapping_lr": 0.0}])
def test_impossible_sizes_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must"):
        DiscriminatorConfig(**changes)  # type: ignore[arg-type]


def test_wrong_shapes_are_named() -> None:
    image, raw, camera = pictures(2)
    net = Discriminator(TINY)
    for given in ((image[:, :, :8], raw, camera), (image, raw[:1], camera), (image, raw, camera[:, :24])):
        with pytest.raises(ShapeError):
            net(*given)


# ---- what it sees ----------------------------------------------------------------------------------------------------


def test_all_three_inputs_matter_before_any_training() -> None:
    net = Discriminator(TINY)
    image, raw, camera = pictures(2)
    before = net(image, raw, camera)
    assert not torch.allclose(net(-image, raw, camera), before)
    assert not torch.allclose(net(image, -raw, camera), before)
    assert not torch.allclose(net(image, raw, camera.flip(0)), before)


def test_without_dual_discrimination_the_final_image_alone_matters() -> None:
    net = Discriminator(replace(TINY, dual=False))
    image, raw, camera = pictures(2)
    before = net(image, raw, camera)
    assert net.enter.weight.shape[1] == 3
    assert torch.equal(net(image, -raw, camera), before)
    assert not torch.allclose(net(-image, raw, camera), before)


@pytest.mark.slow
def test_it_learns_which_camera_a_picture_belongs_to() -> None:
    """A disc moves with the head's yaw; real pictures come with their own camera, made-up ones with another's."""
    net = Discriminator(replace(TINY, group=1))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.0, 0.99))

    def heads(yaws: Tensor) -> tuple[Tensor, Tensor]:
        x = (torch.arange(16) + 0.5) / 16 - 0.5
        distance = (x[None, None] - yaws[:, None, None] / 100).square() + x[None, :, None].square()
        image = (1 - 2 * (distance < 0.04).float())[:, None].expand(-1, 3, -1, -1)
        return image, torch.nn.functional.avg_pool2d(image, 4)

    def scores(yaws: Tensor, told: Tensor) -> Tensor:
        found: Tensor = net(*heads(yaws), cameras(*told.tolist()))
        return found

    for _ in range(60):
        yaws = torch.rand(16) * 50 - 25
        wrong = torch.where(yaws > 0, yaws - 25, yaws + 25)
        loss = sum(discrimination(scores(yaws, yaws), scores(yaws, wrong)).values())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
    with torch.no_grad():
        yaws = torch.linspace(-24, 24, 12)
        right, wrong_scores = scores(yaws, yaws), scores(yaws, torch.where(yaws > 0, yaws - 25, yaws + 25))
    assert (right > wrong_scores).float().mean() > 0.8
    assert float(right.mean() - wrong_scores.mean()) > 0.5


def test_pictures_that_resemble_each_other_can_be_told_from_those_that_differ() -> None:
    same, other = torch.ones(4, 2, 3, 3), torch.arange(4.0)[:, None, None, None].expand(4, 2, 3, 3)
    assert minibatch_deviation(same, 4)[:, 2].max() < 1e-3
    expected = math.sqrt(((torch.arange(4.0) - 1.5) ** 2).mean() + 1e-8)
    torch.testing.assert_close(minibatch_deviation(other, 4)[:, 2], torch.full((4, 3, 3), expected))
    assert torch.equal(minibatch_deviation(other, 4)[:, :2], other)


@pytest.mark.parametrize(("batch", "group", "size"), [(8, 4, 4), (6, 4, 3), (3, 4, 3), (1, 4, 1), (5, 4, 1)])
def test_a_group_is_the_largest_divisor_of_the_batch(batch: int, group: int, size: int) -> None:
    x = torch.randn(batch, 2, 3, 3)
    found = minibatch_deviation(x, group)[:, 2, 0, 0]
    for start in range(0, batch, size):
        alone = minibatch_deviation(x[start : start + size], size)[:, 2, 0, 0]
        torch.testing.assert_close(found[start : start + size], alone)


def test_shares_of_whole_groups_score_as_the_whole_batch() -> None:
    """What two processes compute is what one would."""
    net = Discriminator(TINY)
    given = pictures(8)
    shares = [net(*(x[rank * 4 : rank * 4 + 4] for x in given)) for rank in range(2)]
    torch.testing.assert_close(torch.cat(shares), net(*given))


# ---- layers ----------------------------------------------------------------------------------------------------------


def test_the_low_pass_keeps_a_constant_and_removes_a_checkerboard() -> None:
    inner = low_pass(torch.full((1, 2, 8, 8), 3.0), 2)[:, :, 3:-3, 3:-3]
    torch.testing.assert_close(inner, torch.full_like(inner, 3.0))
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    board = ((-1.0) ** (x + y))[None, None]
    assert low_pass(board, 2)[:, :, 3:-3, 3:-3].abs().max() < 1e-6
    assert low_pass(torch.randn(1, 1, 8, 8), 1, stride=2).shape == (1, 1, 4, 4)


def test_layers_keep_the_variance_and_weights_start_at_one() -> None:
    linear, conv = EqualLinear(64, 512), EqualConv(64, 256, 3)
    assert linear.weight.std().item() == pytest.approx(1.0, rel=0.05)
    assert linear(torch.randn(256, 64)).std().item() == pytest.approx(1.0, rel=0.05)
    assert conv(torch.randn(4, 64, 16, 16))[:, :, 1:-1, 1:-1].std().item() == pytest.approx(1.0, rel=0.05)


def test_a_layers_own_rate_slows_its_learning_and_nothing_else() -> None:
    """Under Adam a step moves each stored weight alike; a layer at a hundredth moves a hundredth in effect."""
    moves = []
    for rate in (1.0, 0.01):
        torch.manual_seed(0)
        layer = EqualLinear(8, 4, rate)
        before = layer(torch.eye(8)).detach()
        assert before.std().item() == pytest.approx(1 / math.sqrt(8), rel=0.5)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        layer(torch.eye(8)).sum().backward()
        optimizer.step()
        moves.append((layer(torch.eye(8)) - before).abs().mean().item())
    assert moves[1] == pytest.approx(0.01 * moves[0], rel=0.01)


# ---- twice differentiable --------------------------------------------------------------------------------------------


def test_gradients_of_gradients_are_right() -> None:
    config = replace(TINY, channel_max=3, mapping_width=3, mapping_layers=1, group=2)
    net = Discriminator(config).double()
    image, raw, camera = (x.double() for x in pictures(2))
    image.requires_grad_()
    raw.requires_grad_()
    inputs = (image, raw)
    assert torch.autograd.gradcheck(lambda *x: net(*x, camera), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *x: net(*x, camera), inputs, fast_mode=True)


def test_r1_reaches_every_weight_that_scores_depend_on() -> None:
    net = Discriminator(TINY)
    image, raw, camera = pictures(4)
    image.requires_grad_()
    raw.requires_grad_()
    r1_penalty(net(image, raw, camera), (image, raw)).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # Leaky ReLUs have no curvature: behind the deviation of the minibatch biases shift scores, but no gradient.
    assert without == ["last.bias", "dense.bias", "out.bias"]


def test_descending_r1_flattens_the_scores() -> None:
    net = Discriminator(TINY)
    image, raw, camera = pictures(4)
    image.requires_grad_()
    raw.requires_grad_()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    found = []
    for _ in range(5):
        penalty = r1_penalty(net(image, raw, camera), (image, raw))
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        found.append(float(penalty.detach()))
    assert found[-1] < 0.8 * found[0]
