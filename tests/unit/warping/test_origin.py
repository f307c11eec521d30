"""Where pixels come from: the view that dominates, and how far its place can be trusted."""

from __future__ import annotations

import torch

from export3d.warping.origin import origin, torn

SIZE = 32


def share(rendered: float, moved: float, still: float, turned: float) -> torch.Tensor:
    return torch.tensor([rendered, moved, still, turned]).view(1, 4, 1, 1).expand(1, 4, SIZE, SIZE)


def flat(across: float) -> torch.Tensor:
    return torch.tensor([across, 0.0]).view(1, 2, 1, 1).expand(1, 2, SIZE, SIZE)


def test_the_place_is_that_of_the_view_that_is_shown() -> None:
    seen = flat(0.2), flat(-0.3)
    for shares, across in (((0, 1, 0, 0), 0.2), ((0, 0, 1, 0), 0.0), ((0, 0, 0, 1), -0.3)):
        found = origin(share(*shares), *seen)
        torch.testing.assert_close(found.offset, flat(across))
        assert float(found.trust.min()) > 0.99999


def test_what_is_rendered_is_not_trusted() -> None:
    trusts = [
        float(origin(share(r, 1 - r, 0, 0), flat(0.0), flat(0.0)).trust.mean()) for r in (0.0, 0.3, 0.5, 0.7, 1.0)
    ]
    assert trusts[:2] == [1.0, 1.0]
    assert trusts[1:] == sorted(trusts[1:], reverse=True)
    assert trusts[-1] == 0.0


def test_what_is_drawn_alone_is_where_the_moved_image_is() -> None:
    """As a mouth: where it would be unmoved, the photo may show its background."""
    found = origin(share(1, 0, 0, 0), flat(0.2), flat(-0.3))
    torch.testing.assert_close(found.offset, flat(0.2))
    assert float(found.trust.max()) == 0.0


def test_views_that_disagree_are_not_trusted() -> None:
    agree, differ = (origin(share(0, 0.5, 0, 0.5), flat(0.1), flat(turn)) for turn in (0.1, 0.3))
    assert float(agree.trust.min()) > 0.99
    assert float(differ.trust.max()) < 0.1


def test_trust_ends_where_neighbours_come_from_far_apart() -> None:
    offset = torch.zeros(1, 2, SIZE, SIZE)
    offset[..., 16:] = 0.5
    edge = torn(offset)[0, 0, 0]
    assert edge.nonzero().flatten().tolist() == [14, 15, 16, 17]
    assert not torn(torch.zeros(1, 2, SIZE, SIZE)).any()
