"""Which frame of a clip is the source, which are driven, and what a chunk of them holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from export3d.camera import Camera, from_pose
from export3d.data.shards import Record
from export3d.errors import NoFaceFound
from export3d.evaluation.protocols.driven import (
    DrivenClip,
    Predict,
    Prediction,
    Reenactment,
    distance_from,
    driven_chunks,
    driven_clip,
    most_frontal,
)
from export3d.evaluation.protocols.references import Copy
from export3d.evaluation.protocols.scoring import CHUNK
from export3d.pretrained import load_pretrained

Make = Callable[..., Record]
CPU = torch.device("cpu")


def labels(*angles: tuple[float, float, float]) -> np.ndarray:
    return from_pose(np.array(angles, dtype=float), np.tile([0.0, 0.0, 2.7], (len(angles), 1)))


def test_the_source_is_the_frame_with_the_smallest_sum_of_angles() -> None:
    camera = labels((9, 0, 0), (-4, 3, -1), (0, 0, 8.5), (5, -5, 5))
    assert most_frontal(camera, np.ones(4, bool)) == 1


def test_the_source_is_a_frame_in_which_the_face_was_found() -> None:
    camera = labels((0, 0, 0), (20, 0, 0), (30, 0, 0))
    assert most_frontal(camera, np.array([False, True, True])) == 1


def test_of_equally_frontal_frames_the_first_is_taken() -> None:
    label = Camera.look_at().label
    assert most_frontal(np.stack([label] * 3), np.array([False, True, True])) == 1


def test_every_further_found_frame_is_driven(make_clip: Make) -> None:
    record = make_clip("a", yaws=(12, -3, 25, 8, 18), found=[True, True, False, True, True])
    clip = driven_clip(record, "arkit52", 64)
    assert clip.source == 1
    assert clip.driven.tolist() == [0, 3, 4]
    assert driven_clip(record, "arkit52", 64, every=2).driven.tolist() == [0, 4]


def test_frames_that_equal_the_source_are_left_out_and_counted(
    make_clip: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_clip("a")
    pictures = np.full((record.frames, 3, 64, 64), 7, np.uint8)
    monkeypatch.setattr("export3d.evaluation.protocols.driven.decode", lambda record, size: pictures)
    with pytest.raises(NoFaceFound, match="no second frame"):
        driven_clip(record, "arkit52", 64)
    pictures[4] += 1
    clip = driven_clip(record, "arkit52", 64)
    assert (clip.driven.tolist(), clip.identical) == ([4], 4)


def test_the_farthest_frame_differs_most_in_pose_and_expression(make_clip: Make) -> None:
    clip = driven_clip(make_clip("a", yaws=(0, 1, 60, 2)), "arkit52", 64)
    flat = np.full((4, 52), 0.1, np.float32)
    same = DrivenClip(
        clip.record, clip.frames, type(clip.motion)(flat, clip.motion.camera, 25.0, "arkit52"), 0, clip.driven, 0
    )
    assert same.farthest == 2
    assert distance_from(same.motion, same.motion.camera[0], same.motion.expression[0])[2] == pytest.approx(
        4.0, abs=0.2
    )  # 60 degrees of yaw in units of 15
    flat[3] = 0.9
    shifted = DrivenClip(
        clip.record, clip.frames, type(clip.motion)(flat, clip.motion.camera, 25.0, "arkit52"), 0, clip.driven, 0
    )
    assert shifted.farthest == 3


def test_the_copy_is_the_source_and_ours_is_what_the_model_renders(make_clip: Make, tiny_weights: Path) -> None:
    clip = driven_clip(make_clip("a"), "arkit52", 64)
    rows = np.array([0, 2])
    source = clip.images([clip.source])
    assert torch.equal(Copy()(clip, CPU)(rows).image, source.expand(2, -1, -1, -1))
    model = load_pretrained(tiny_weights)
    expected = model(source.expand(2, -1, -1, -1), torch.tensor(clip.motion.expression[rows]),
                     torch.tensor(clip.motion.camera[rows])).image.clamp(-1, 1)  # fmt: skip
    torch.testing.assert_close(Reenactment(model)(clip, CPU)(rows).image, expected, atol=1e-4, rtol=1e-4)


class Shifted:
    """Predicts the truth, brighter by a fixed amount; notes how many frames it was asked for at once."""

    def __init__(self, error: float) -> None:
        self.error, self.asked = error, list[int]()

    def __call__(self, clip: DrivenClip, device: torch.device) -> Predict:
        def predict(rows: np.ndarray) -> Prediction:
            self.asked.append(len(rows))
            return Prediction(clip.images(rows, device) + self.error)

        return predict


def test_chunks_hold_every_driven_frame_once_with_every_method(make_clip: Make) -> None:
    clip = driven_clip(make_clip("a", yaws=tuple(range(1, CHUNK + 10)), step=0), "arkit52", 64)
    clip = DrivenClip(clip.record, clip.frames, clip.motion, 0, np.arange(1, len(clip.frames)), 0)
    method = Shifted(0.0)
    chunks = list(driven_chunks(clip, {"ours": method, "copy": Copy()}, CPU, batch=5))
    assert [len(chunk.rows) for chunk in chunks] == [CHUNK, len(clip.driven) - CHUNK]
    assert max(method.asked) == 5
    assert np.concatenate([chunk.rows for chunk in chunks]).tolist() == clip.driven.tolist()
    for chunk in chunks:
        np.testing.assert_array_equal(chunk.targets, np.moveaxis(clip.frames.numpy()[chunk.rows], 1, -1))
        np.testing.assert_array_equal(chunk.predictions["ours"], chunk.targets)
        assert chunk.predictions["copy"].shape == chunk.targets.shape


def test_predictions_are_rounded_to_what_would_be_saved(make_clip: Make) -> None:
    """A third of a grey level vanishes in 8 bits."""
    clip = driven_clip(make_clip("a"), "arkit52", 64)
    (chunk,) = driven_chunks(clip, {"ours": Shifted(0.3 / 127.5)}, CPU, batch=4)
    np.testing.assert_array_equal(chunk.predictions["ours"], chunk.targets)
    (chunk,) = driven_chunks(clip, {"ours": Shifted(5.0)}, CPU, batch=4)
    assert chunk.predictions["ours"].min() == 255
