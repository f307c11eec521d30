"""Figures that say how much of a person's appearance a representation of expressions carries (Fig. 7 of the paper).

Can a classifier name the person from it (`probe`)? How far apart are neutral faces, compared with the distance from
neutral to smiling (`held_expression`)? How many dimensions does it use (`effective_rank`)? Does an expression find its
own frame (`retrieval_accuracy`)? Exact definitions: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from export3d.errors import InputError, MissingExtra, check_shape

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
Statistic = Callable[[Rows], Array]
"""Numbers of drawn people (..., P) to a figure (...)."""

SEAM_FRAMES = 25
"""Frames left out between the two halves of a clip, one second: no test frame then resembles a training frame."""
PROBE_C = 1.0


def spread_frames(usable: NDArray[np.bool_], count: int = 33) -> NDArray[np.int64]:
    """Frame numbers (count,), ascending and evenly spaced in time, among the usable ones of a clip.

    The first and the last usable frame are included. The others lie at evenly spaced ranks, so no frame appears twice.

    Args:
        usable: (T,) bool; for example `FrameStore.found[clip.rows].numpy()`.
        count: at least 1.

    Raises:
        InputError: the clip has fewer usable frames.
    """
    rows = np.flatnonzero(np.asarray(usable))
    if not 1 <= count <= len(rows):
        raise InputError(f"the clip has {len(rows)} usable frames but {count} are needed; leave the clip out")
    return np.asarray(rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)], np.int64)


def halves(found: NDArray[np.bool_], seam: int = SEAM_FRAMES) -> tuple[Rows, Rows]:
    """Numbers of a clip's usable frames in its first and second half, without `seam` frames in the middle.

    Args:
        found: (T,) bool, frames that show the face.
        seam: frames left out between the halves.
    """
    rows = np.flatnonzero(found)
    return rows[2 * rows < len(found) - seam], rows[2 * rows >= len(found) + seam]


def probe(first: Array, first_person: Rows, second: Array, second_person: Rows) -> tuple[Array, Array]:
    """Accuracy per person on test frames, (P,) each, of a linear and a nearest-neighbour classifier.

    Each feature is standardised by the mean and deviation of the training frames. Linear: multinomial logistic
    regression, L2-regularised with C = 1. Nearest neighbour: the person of the nearest training frame, Euclidean.

    Args:
        first: (N, k) training frames.  first_person: (N,) numbers 0 to P - 1.
        second: (M, k) test frames.  second_person: (M,); everyone is in both.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
    except ImportError as error:
        raise MissingExtra("evaluate", "scikit-learn") from error
    mean, deviation = first.mean(0), first.std(0)
    deviation = np.where(deviation > 1e-9, deviation, 1.0)
    first, second = (first - mean) / deviation, (second - mean) / deviation
    linear = LogisticRegression(C=PROBE_C, max_iter=2000).fit(first, first_person)
    neighbour = KNeighborsClassifier(1, algorithm="brute").fit(first, first_person)
    people = np.arange(first_person.max() + 1)
    right = [classifier.predict(second) == second_person for classifier in (linear, neighbour)]
    a, b = (np.array([hits[second_person == person].mean() for person in people]) for hits in right)
    return a, b


def held_expression(neutral: Array, smiling: Array) -> Statistic:
    """RMS distance of neutral faces from their mean, over the distance from the mean neutral to the mean smiling face.

    Everyone in `neutral` has the same expression, so the numerator is appearance (and tracker noise) alone; the
    denominator is the change of expression they share. Invariant to shift, rotation and scale; NaN if nothing moves.

    Args:
        neutral, smiling: (P, k), row i of both of person i.

    Returns:
        The figure of any people, drawn with repetition.
    """
    check_shape(smiling, "{} {}".format(*neutral.shape), "smiling")
    count = len(neutral)
    centred, way = neutral - neutral.mean(0), smiling - neutral
    spread, moved = centred @ centred.T, way @ way.T

    def statistic(draws: Rows) -> Array:
        weight = np.stack([np.bincount(row, minlength=count) for row in draws.reshape(-1, draws.shape[-1])]) / count
        variance = weight @ spread.diagonal() - ((weight @ spread) * weight).sum(-1)
        distance = ((weight @ moved) * weight).sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.sqrt(variance.clip(min=0.0) / distance.clip(min=0.0))).reshape(draws.shape[:-1])

    return statistic


def effective_rank(features: Array) -> float:
    """exp of the entropy of the covariance's normalised eigenvalues: 1 to k, or 0 for constant features.

    Args:
        features: (N, k).
    """
    values = np.linalg.eigvalsh(np.cov(features, rowvar=False).reshape(features.shape[1], -1)).clip(min=0.0)
    if values.sum() <= 0.0:
        return 0.0
    share = values[values > 0.0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def retrieval_accuracy(image_embeddings: Tensor, expression_embeddings: Tensor, k: int = 5) -> float:
    """Share of the T frames of a clip whose own beta' is among the k nearest of the clip's T by cosine.

    Row i of both belongs to frame i. An expression at the same distance as the frame's own counts as nearer, so an
    encoder that gives every frame the same embedding scores 0, not 1. Chance is k / T.

    Args:
        image_embeddings: (T, d), f_I of the frames.
        expression_embeddings: (T, d), f_e of their expressions.
        k: 1 to T.
    """
    check_shape(image_embeddings, "T d", "image_embeddings")
    check_shape(expression_embeddings, "{} {}".format(*image_embeddings.shape), "expression_embeddings")
    cosine = F.normalize(image_embeddings.double(), dim=-1) @ F.normalize(expression_embeddings.double(), dim=-1).mT
    nearer = (~(cosine < cosine.diagonal()[:, None])).sum(-1) - 1  # so that NaN is no hit
    return float((nearer < k).double().mean())
