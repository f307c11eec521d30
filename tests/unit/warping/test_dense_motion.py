"""Which motion a place follows: what holds before training, for any weights, at any size, in mixed precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from export3d.errors import ShapeError
from export3d.image import resize
from export3d.warping.dense_motion import CANDIDATES, GRID, DenseMotion


def smooth(channels: int, size: int, batch: int = 2) -> Tensor:
    """(batch, channels, size, size): waves as long as a third of the picture or more."""
    x = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(x, x, indexing="ij")
    turn, phase = torch.randn(2, batch, channels, 1, 1) * 2.0
    return torch.sin(6.0 * (turn.cos() * x + turn.sin() * y) + phase)


def scene(size: int = 64, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """A picture, four flows, the last one still, and three hints, the same at any size."""
    torch.manual_seed(3)
    flows = 0.2 * smooth(2 * len(CANDIDATES), size, batch).view(batch, len(CANDIDATES), 2, size, size)
    flows[:, -1] = 0.0
    return smooth(3, size, batch), flows, 0.5 + 0.5 * smooth(3, size, batch)


def flow_of(network: DenseMotion, source: Tensor, flows: Tensor, hints: Tensor) -> Tensor:
    """The network's flow for a picture of any size and flows (B, 4, 2, H, H)."""
    flow: Tensor = network(resize(source, GRID), flows[:, :-1].unbind(1), hints)
    return flow


def awake() -> DenseMotion:
    """A network that mixes by what it sees."""
    torch.manual_seed(5)
    network = DenseMotion().eval()
    for layer in (network.share, network.beyond):
        nn.init.normal_(layer.weight, std=0.3)
    return network


def choosing(which: int, network: DenseMotion | None = None) -> DenseMotion:
    """A network that takes one candidate everywhere, whatever it sees."""
    network = network or DenseMotion()
    with torch.no_grad():
        network.share.weight.zero_()
        network.share.bias.zero_()
        network.share.bias[which] = 60.0
        network.beyond.weight.zero_()
        network.beyond.bias.zero_()
    return network


@pytest.mark.parametrize("size", [32, 64, 96, 256])
def test_a_new_network_follows_mostly_the_sheet(size: int) -> None:
    source, flows, hints = scene(size)
    share = torch.tensor([2.0, 0.0, 0.0, 0.0]).softmax(0)
    assert share[0] > 0.7
    mixed = flow_of(DenseMotion(), source, flows, hints)
    assert mixed.shape == (2, 2, size, size)
    torch.testing.assert_close(mixed, (share[:, None, None, None] * flows).sum(dim=1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("which", range(len(CANDIDATES)), ids=CANDIDATES)
@pytest.mark.parametrize("size", [64, 128])
def test_a_candidate_that_is_chosen_wholly_comes_back(which: int, size: int) -> None:
    source, flows, hints = scene(size)
    torch.testing.assert_close(
        flow_of(choosing(which, awake()), source, flows, hints), flows[:, which], atol=1e-6, rtol=0
    )


def test_what_lies_beyond_all_candidates_is_added() -> None:
    source, flows, hints = scene()
    network = choosing(3)
    with torch.no_grad():
        network.beyond.bias.copy_(torch.tensor([1.0, -2.0]))
    added = flow_of(network, source, flows, hints) - flows[:, 3]
    torch.testing.assert_close(added[:, 0], torch.full((2, 64, 64), 0.1))
    torch.testing.assert_close(added[:, 1], torch.full((2, 64, 64), -0.2))


def test_shares_differ_from_place_to_place_and_lie_between_the_candidates() -> None:
    source, flows, hints = scene()
    network = awake()
    nn.init.zeros_(network.beyond.weight)
    with torch.no_grad():
        mixed = flow_of(network, source, flows, hints)
    assert (mixed <= flows.amax(dim=1) + 1e-6).all()
    assert (mixed >= flows.amin(dim=1) - 1e-6).all()
    away = (flows - mixed[:, None]).square().sum(dim=2)
    assert len(away.argmin(dim=1).unique()) > 1


def test_another_size_of_the_same_scene_has_nearly_the_same_flow() -> None:
    """The network sees a grid of its own size: a head is as large to it in any picture."""
    network = awake()
    with torch.no_grad():
        small, large = (flow_of(network, *scene(size)) for size in (128, 256))
    assert small.std() > 0.1
    assert (resize(large, 128) - small).abs().max() < 0.02
    assert (resize(large, 128) - small).abs().mean() < 0.002


def test_picture_flows_and_hints_all_matter() -> None:
    source, flows, hints = scene()
    network = awake()
    with torch.no_grad():
        before = flow_of(network, source, flows, hints)
        for given in (
            (source.flip(1), flows, hints),
            (source, flows, hints.flip(1)),
            (source, flows[:, [2, 1, 0, 3]], hints),
        ):
            assert (flow_of(network, *given) - before).abs().max() > 1e-2


def test_an_item_alone_is_as_it_is_in_a_batch() -> None:
    network, given = awake(), scene(batch=3)
    with torch.no_grad():
        together = flow_of(network, *given)
        for b in range(3):
            alone = flow_of(network, *(tensor[b : b + 1] for tensor in given))
            torch.testing.assert_close(together[b : b + 1], alone, atol=1e-5, rtol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_every_weight_and_every_flow_gets_a_gradient() -> None:
    network, (source, flows, hints) = awake(), scene()
    flows.requires_grad_()
    (flow_of(network, source, flows, hints) * torch.randn(2, 2, 64, 64)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name
    assert flows.grad is not None
    assert (flows.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).tolist() == [True, True, True, False]


def test_the_first_gradient_reaches_the_shares_and_what_lies_beyond() -> None:
    network = DenseMotion()
    flow_of(network, *scene()).square().sum().backward()
    for layer in (network.share, network.beyond):
        for parameter in layer.parameters():
            assert parameter.grad is not None
            assert parameter.grad.count_nonzero() > 0


@pytest.mark.slow
def test_it_learns_which_part_moves() -> None:
    """A disc that moves as the sheet does before a room that is still, told by its colour alone."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, GRID)] * 2, indexing="ij")
    inside = ((x.square() + y.square()) < 0.3).float()[None, None]
    source = torch.cat([2 * inside - 1, torch.zeros(1, 2, GRID, GRID)], dim=1)
    flows = torch.zeros(1, len(CANDIDATES), 2, GRID, GRID)
    flows[:, 0] = 0.1
    given, wanted = (source, flows, torch.zeros(1, 3, GRID, GRID)), inside * flows[:, 0]
    network = DenseMotion()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    errors = []
    for _ in range(25):
        error = (flow_of(network, *given) - wanted).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.3 * errors[0]


def test_another_source_than_a_small_one_is_refused() -> None:
    source, flows, hints = scene(32)
    with pytest.raises(ShapeError, match="source"):
        DenseMotion()(source, flows[:, :-1].unbind(1), hints)


@pytest.mark.parametrize("count", [2, 4])
def test_other_flows_than_one_for_each_moving_candidate_are_refused(count: int) -> None:
    source, flows, hints = scene()
    with pytest.raises(ShapeError, match="candidates"):
        DenseMotion()(source, flows[:, :count].unbind(1), hints)


@pytest.mark.parametrize("which", range(len(CANDIDATES)), ids=CANDIDATES)
def test_under_bfloat16_autocast_places_keep_their_precision(which: int) -> None:
    """A place rounded to bfloat16 is off by up to a pixel of 256."""
    source, flows, hints = scene(128)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = flow_of(choosing(which, awake()), source, flows, hints)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, flows[:, which], atol=1e-5, rtol=0)


def test_under_bfloat16_autocast_a_mixture_stays_near_the_float32_one() -> None:
    network, given = awake(), scene(128)
    with torch.no_grad():
        exact = flow_of(network, *given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = flow_of(network, *given)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.02 * exact.std()
