"""How a face moves with its expression, landmark by landmark (not in the paper).

The tracker gives the source's landmarks in the image. Their depth, and how they move from one expression to another,
are learned from landmarks alone, in about a minute (`training.reconstruction`). The moved landmarks determine the flow
of the generator's source features (`flows.plane_flow`) and the flow of the source's pixels (`flows.driving_flow`).

Ten directions forget most of the gaze and some of the lips. Where `WarpConfig.scores` is on, landmarks therefore move
with the expression coefficients themselves, and beta' drives only the generator.

Letters: B batch, L = 478 landmarks, F = 470 face vertices of the elastic mesh, E expression coefficients, n directions,
m size of what landmarks move by: beta', or the E coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export3d.errors import check_shape
from export3d.face.landmark_sets import BROWS, EYE_CORNERS, EYELIDS, IRISES, LIPS, MOUTH_CORNERS
from export3d.face.mesh import LANDMARKS, canonical_mesh
from export3d.layers import constant, smooth_step
from export3d.warping.average_head import plane_positions
from export3d.warping.elastic_mesh import FACE

_CODE, _HIDDEN = 32, 128
_DEPTH_UNIT, _MOTION_UNIT = 0.02, 0.05
"""Output scales in scene units: an output of 1 offsets depth by 0.02 and moves a landmark by 0.05."""
_FAR = 1000.0
"""Range of expression coefficients before training."""
_GAINS = (LIPS, (1.5, 1.3, 1.3), 0.03), (EYELIDS, (1.4, 1.4, 1.4), 0.03), (BROWS, (1.2, 1.2, 1.2), 0.015)
_IRISES = 1.38
"""Gains of `amplify` along x, y and z, and up to which distance those of lips, lids and brows reach, scene units."""
_ABOVE, _BELOW = (-0.12, -0.28), (0.2, 0.6)
"""Where the regions of `Regions` above and below the eyes begin, and are all: parts of the way from eyes to mouth."""
_LEARNED = 0.1
"""Input scale in scene units: faces that differ by 0.1 give inputs of about 1."""


@dataclass(frozen=True)
class Face:
    """A source's face, before it moves.

    Attributes:
        own: (B, m) what its own expression gives, see `LandmarkMotion.input`.
        places: (B, F, 2) its vertices in the source, 0..1.
        aligned: (B, F, 2) the same vertices in the source aligned to the planes, [-1, 1] grid units.
        points: (B, L, 3) its landmarks in the head's own axes, scene units.
        code: (B, c) its shape, as an input of the motion.
    """

    own: Tensor
    places: Tensor
    aligned: Tensor
    points: Tensor
    code: Tensor

    def expand(self, batch: int) -> Face:
        """One face repeated for a batch; copies nothing."""
        values = (getattr(self, field.name) for field in fields(self))
        return Face(*(x.expand(batch, *x.shape[1:]) for x in values))


@dataclass(frozen=True)
class Regions:
    """How four regions of B faces move on their own: the right eye, the left eye, all above, and all below.

    The corners of an eye do not rise farther than with all above it.

    Attributes:
        asked: (B, 4, m) what they follow, see `LandmarkMotion.input`.
        own: (B, 4, m) that of the sources in the same sense.
        share: (B,) how far they do, 0 to 1; else they move with the whole face.
    """

    asked: Tensor
    own: Tensor
    share: Tensor


class LandmarkMotion(nn.Module):
    """Depth and motion of a face's landmarks. Untrained, it gives the average head's depth and no motion.

    A landmark moves by f(x, code) - f(source's x, code), so that its own expression leaves a face unchanged. x is
    beta', or the standardised expression coefficients.

    Args:
        embedding: size of beta'.
        scores: None: x is beta'. Else x are the expression coefficients: their number E, and that of the directions n.
    """

    average: Tensor
    regions: Tensor
    along: Tensor
    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor
    typical: Tensor

    def __init__(self, embedding: int, scores: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.scores = scores is not None
        self.width = scores[0] if scores else embedding
        self.gain = 1.0 if scores else embedding**0.5
        if scores:
            self.register_buffer("mean", torch.zeros(scores[0]))
            self.register_buffer("deviation", torch.ones(scores[0]))
            self.register_buffer("low", torch.full(scores[:1], -_FAR))
            self.register_buffer("high", torch.full(scores[:1], _FAR))
            self.register_buffer("typical", torch.zeros(scores[1], scores[0]))
        self.shape = nn.Linear(2 * LANDMARKS, _CODE)
        self.depth = nn.Linear(_CODE, LANDMARKS)
        self.first = nn.Linear(self.width + _CODE, _HIDDEN)
        self.second = nn.Linear(_HIDDEN, _HIDDEN)
        self.out = nn.Linear(_HIDDEN, 3 * LANDMARKS, bias=False)
        for layer in (self.depth, self.out):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.depth.bias)
        self.register_buffer("average", average_landmarks(), persistent=False)
        self.register_buffer("regions", _regions(self.average), persistent=False)
        self.register_buffer("along", torch.stack([_along(self.average, eye) for eye in EYE_CORNERS]), persistent=False)

    @torch.no_grad()
    def standardise(self, expression: Tensor, coefficients: Tensor) -> None:
        """Measure what `input` needs; does nothing where landmarks move by beta'.

        Args:
            expression: (N, E) coefficients of the training data; deviations are at least 0.02.
            coefficients: (N, n) their lambda.
        """
        if not self.scores:
            return
        self.mean.copy_(expression.mean(0))
        self.deviation.copy_(expression.std(0, correction=0).clamp_min(0.02))
        self.low.copy_(expression.amin(0))
        self.high.copy_(expression.amax(0))
        known = (coefficients - coefficients.mean(0)).double()
        wanted = ((expression - self.mean) / self.deviation).double()
        self.typical.copy_(torch.linalg.lstsq(known, wanted, driver="gelsd").solution)

    @torch.no_grad()
    def amplify(self, undo: bool = False) -> None:
        """Let lips move 1.5 times as far sideways and else 1.3 times, eyelids 1.4, irises 1.38 and brows 1.2 times.

        Call it once, after the fit.

        In the pictures that `base` makes, the tracker finds landmarks 0.7 to 0.9 times as far from their places
        in the source as they were moved. The gains make up for it. Those of lips, brows and lids fade to 1 around
        them. Outer ends of brows have none: in a turned head they would stand out of the face. `undo` takes the gains
        back.
        """
        gain = torch.ones_like(self.average)
        for part, most, around in _GAINS:
            near = 1.0 - torch.cdist(self.average[:, :2], self.average[list(part), :2]).amin(dim=1) / around
            gain = torch.maximum(gain, 1.0 + (gain.new_tensor(most) - 1.0) * near.clamp_min(0.0)[:, None])
        gain[IRISES[0].start :] = _IRISES
        gain = gain.view(-1, 1)
        self.out.weight.copy_(self.out.weight / gain if undo else self.out.weight * gain)

    def input(self, beta: Tensor, expression: Tensor, shift: Tensor | None = None) -> Tensor:
        """What landmarks move by: beta' (B, d), or expressions (B, E), standardised; (B, m).

        Expressions beyond the range of the training data are moved to its border: a score that hardly varies there,
        such as cheekPuff of MediaPipe, would otherwise move landmarks far away.

        `shift` (B, n) or (1, n) was added to lambda in beta'. Expressions are shifted by what is typical of it: the
        linear regression of the coefficients on lambda over the training data.
        """
        if not self.scores:
            return beta
        known = torch.minimum(torch.maximum(expression.float(), self.low), self.high)
        x = (known - self.mean) / self.deviation
        return x if shift is None else x + shift.float() @ self.typical

    def face(self, own: Tensor, landmarks: Tensor, camera: Tensor, half_extent: float) -> Face:
        """Faces as they are in their sources.

        Args:
            own: (B, m) what the sources' expressions give, see `input`.
            landmarks: (B, L, 2), 0..1 across the sources.
            camera: (B, 25).
            half_extent: of the planes, scene units.
        """
        check_shape(landmarks, f"B {LANDMARKS} 2", "the source's landmarks")
        with torch.autocast(landmarks.device.type, enabled=False):
            landmarks, camera, own = landmarks.float(), camera.float(), own.float()
            depth = self.average[:, 2] + _DEPTH_UNIT * self.depth.bias
            seen = lifted(landmarks, camera, depth)[..., :2] - self.average[:, :2]
            code = self.shape(seen.flatten(1) / _LEARNED)
            points = lifted(landmarks, camera, self.average[:, 2] + _DEPTH_UNIT * self.depth(code))
            places = landmarks[:, constant(FACE, landmarks.device)]
            with torch.no_grad():
                aligned = plane_positions(places, camera, half_extent)
        return Face(own, places, aligned, points, code)

    def forward(self, asked: Tensor, face: Face, regions: Regions | None = None) -> Tensor:
        """What the driving expressions give (B, m) and faces to the moved landmarks (B, L, 3), scene units.

        `regions` move by their own.
        """
        with torch.autocast(asked.device.type, enabled=False):
            move = self._offsets(asked.float(), face.code) - self._offsets(face.own, face.code)
            points = face.points + _MOTION_UNIT * move
            if regions is not None:
                alone = [self(regions.asked[:, k], replace(face, own=regions.own[:, k])) for k in range(4)]
                for eye, (corners, along) in enumerate(zip(EYE_CORNERS, self.along)):
                    risen = (alone[2] - alone[eye])[:, constant(corners, asked.device), 1].clamp_min(0.0)
                    down = torch.lerp(risen[:, :1], risen[:, 1:], along)
                    alone[eye] = alone[eye] + F.pad(down[..., None], (1, 1))
                apart = sum(there[:, None] * moved for there, moved in zip(self.regions, alone))
                points = torch.lerp(points, apart, regions.share[:, None, None])
            return points

    def _offsets(self, given: Tensor, code: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(torch.cat([self.gain * given, code], dim=1)), 0.2)
        out: Tensor = self.out(F.leaky_relu(self.second(x), 0.2))
        return out.view(-1, LANDMARKS, 3)


def _regions(points: Tensor) -> Tensor:
    """(4, L) share of each region of `Regions` in each of the average landmarks (L, 3); they sum to 1.

    Those of the eyes pass into each other between the inner corners.
    """
    (right, left), mouth = (points[list(corners), :2] for corners in EYE_CORNERS), points[list(MOUTH_CORNERS), 1].mean()
    height = torch.cat([right, left])[:, 1].mean()
    down = (points[:, 1] - height) / (mouth - height)
    above, below = (smooth_step((down - first) / (last - first)) for first, last in (_ABOVE, _BELOW))
    eyes, on_left = 1.0 - above - below, smooth_step((points[:, 0] - right[1, 0]) / (left[1, 0] - right[1, 0]))
    return torch.stack([eyes * (1.0 - on_left), eyes * on_left, above, below])


def _along(points: Tensor, corners: tuple[int, int]) -> Tensor:
    """(L,) where the average landmarks (L, 3) lie on the way from the outer corner of an eye to the inner, 0 to 1."""
    outer, inner = points[list(corners), :2]
    way = inner - outer
    part: Tensor = (points[:, :2] - outer) @ way / way.square().sum()
    return part.clamp(0.0, 1.0)


def average_landmarks() -> Tensor:
    """(L, 3) the canonical mesh, and all points of the irises midway between the corners of their eyes; scene units."""
    mesh = torch.from_numpy(canonical_mesh().vertices.copy()).float()
    irises = [mesh[list(corners)].mean(dim=0).expand(len(iris), -1) for corners, iris in zip(EYE_CORNERS, IRISES)]
    return torch.cat([mesh, *irises])


def lifted(landmarks: Tensor, camera: Tensor, depth: Tensor) -> Tensor:
    """Image points lifted to a depth along their rays.

    Args:
        landmarks: (B, L, 2), 0..1 across the images.
        camera: (B, 25).
        depth: (L,) or (B, L), z in the head's own axes, scene units.

    Returns:
        (B, L, 3), scene units.
    """
    places = plane_positions(landmarks, camera, 1.0, depth)
    return torch.cat([places, depth.expand(places.shape[:-1])[..., None]], dim=-1)
