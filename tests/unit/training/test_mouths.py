"""Phase two for the inside of mouths alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from export3d.config import tiny, variant
from export3d.data.frames import FrameStore
from export3d.errors import ConfigError
from export3d.face.landmark_sets import INNER_LIPS
from export3d.model import Export3D
from export3d.training.adversarial import AdversarialConfig, mouth_task
from export3d.training.loop import train
from export3d.training.loop_config import LoopConfig
from export3d.training.mouths import MouthTask, PatchDiscriminator
from export3d.training.state import load_state
from export3d.warping.inner_mouth import SIDE
from tests.tiny_models import PARTS, warped

pytest.importorskip("accelerate")

CONFIG = AdversarialConfig(adv_trainable="mouth", backbone="none", augment=False, mirror=False, d_lr=2e-3)
LOOP = LoopConfig(
    batch_size=4, max_images=16, log_every=2, sheet_every=0, validate_every=0, save_every=0, lr=2e-3, warmup_images=0,
    ema_halflife_images=4, ema_rampup=0.5, precision="fp32", cpu=True, tensorboard=False, progress=False,
)  # fmt: skip


@pytest.fixture
def clips(golden: ModuleType) -> FrameStore:
    """Made-up clips of people whose mouths are open by a tenth of the picture."""
    store: FrameStore = golden.made_up_clips()
    places = store.landmarks.float()
    for lip, to in (((82, 13, 312), -0.05), ((87, 14, 317), 0.05)):
        places[:, list(lip), 1] = places[:, 13:14, 1] + to
    return replace(store, landmarks=places.half())


def former() -> Export3D:
    torch.manual_seed(3)
    return Export3D(variant(warped(*PARTS), "no_inside")).eval().requires_grad_(False)


def shut(clips: FrameStore) -> torch.Tensor:
    """The landmarks of clips with closed lips."""
    places = clips.landmarks.clone()
    places[:, list(INNER_LIPS)] = places[:, 13:14]
    return places


def task(clips: FrameStore) -> MouthTask:
    return mouth_task(CONFIG, former(), clips, None, 0)


@pytest.mark.slow
def test_weights_get_a_mouth_and_all_else_stays_bit_for_bit(clips: FrameStore, tmp_path: Path) -> None:
    given = task(clips)
    fresh = {name: x.clone() for name, x in given.model.state_dict().items()}
    result = train(given, tmp_path, LOOP, opponent=given.opponent)
    state = load_state(result.checkpoint)
    assert state.config["task"]["model"]["warp"]["inside"]
    before = former().state_dict()
    for found in (state.model, state.ema):
        assert before.keys() < found.keys()
        assert all(torch.equal(found[name], value) for name, value in before.items())
        learned = {name for name in found.keys() - before.keys() if not torch.equal(found[name], fresh[name])}
        assert learned == {name for name in found if name.startswith("warp.inner.")}


def test_what_lies_between_the_lips_is_not_seen(clips: FrameStore) -> None:
    """The loss depends on it, what is drawn does not."""
    given, drawn, terms = task(clips), [], []
    batch = dict(given.batch(0, 4, 0, 1))
    for colour in (None, 1.0):
        if colour is not None:
            y0, y1 = (int(batch["landmarks"][1, n, 1] * batch["driving"].shape[-1]) for n in (13, 14))
            x = int(batch["landmarks"][1, 13, 0] * batch["driving"].shape[-1])
            batch["driving"] = batch["driving"].clone()
            batch["driving"][1, :, (y0 + y1) // 2, x] = colour
        terms.append(given.losses(batch, 0))
        assert given.opponent.shown is not None
        _, made, hole = given.opponent.shown
        drawn.append((made * hole)[1])
    assert not torch.equal(terms[0]["l1"], terms[1]["l1"])
    torch.testing.assert_close(drawn[0], drawn[1])


def test_of_every_other_frame_the_upper_teeth_are_seen(clips: FrameStore) -> None:
    """The lower half of these mouths is dark and the upper one white."""
    given = task(clips)
    batch = dict(given.batch(0, 4, 0, 1))
    batch["driving"], size = torch.full_like(batch["driving"], -0.3), batch["driving"].shape[-1]
    upper, middle, lower = (
        (size * batch["landmarks"][:, numbers, 1].float()).mean(dim=1).round().int().tolist()
        for numbers in ([13], [13, 14], [14])
    )
    for n in range(4):
        batch["driving"][n, :, upper[n] : middle[n]] = 0.9
        batch["driving"][n, :, middle[n] : lower[n]] = -1.0
    given.losses(batch, 0)
    assert given.opponent.shown is not None
    first, second, third, fourth = (float(hole.sum()) for hole in given.opponent.shown[2])
    assert 0.2 * second < first < 0.8 * second
    assert 0.2 * fourth < third < 0.8 * fourth


def test_frames_with_closed_lips_are_not_drawn(clips: FrameStore) -> None:
    """Half of the frames of each clip are closed; the images of the others are white."""
    closed = torch.arange(len(clips)) % 2 == 0
    places = torch.where(closed[:, None, None], shut(clips), clips.landmarks)
    frames = torch.where(closed[:, None, None, None], clips.frames, torch.full_like(clips.frames, 255))
    given = task(replace(clips, landmarks=places, frames=frames))
    assert all((given.batch(number, 4, 0, 1)["driving"] == 1.0).all() for number in range(0, 32, 4))


def test_closed_mouths_give_a_loss_that_is_a_number(clips: FrameStore) -> None:
    places = clips.landmarks.clone()
    places[:, [14, 87, 317]] = places[:, [13, 82, 312]]
    given = task(replace(clips, landmarks=places))
    total = given.losses(given.batch(0, 4, 0, 1), 10**6)["total"]
    torch.autograd.backward(total)
    assert total.isfinite()
    assert all(torch.isfinite(value) for value in given.opponent.losses({}, 0).values())


def test_scores_are_those_of_the_patches_with_a_hole() -> None:
    hole = torch.zeros(2, 1, SIDE, SIDE)
    hole[0, :, 10:12, 10:12] = 1.0
    hole[1, :, 8:24, 8:16] = 1.0
    scores, features = PatchDiscriminator()(torch.rand(2, 3, SIDE, SIDE), hole)
    assert scores.shape == (1 + 2,)
    assert len(features) == 4


def test_weights_that_keep_no_teeth_are_refused_in_one_sentence(clips: FrameStore) -> None:
    with pytest.raises(ConfigError, match=r"^model\.trainable is mouth, but these weights have no warp"):
        mouth_task(CONFIG, Export3D(tiny()), clips, None, 0)


def test_a_frozen_warp_is_refused_in_one_sentence(clips: FrameStore) -> None:
    with pytest.raises(ConfigError, match=r"leave one out\.?$"):
        mouth_task(replace(CONFIG, freeze=("warp",)), former(), clips, None, 0)


def test_a_batch_of_closed_mouths_changes_nothing(clips: FrameStore) -> None:
    given = task(replace(clips, landmarks=shut(clips)))
    batch = given.batch(0, 4, 0, 1)
    for side, module in ((given, given.inner), (given.opponent, given.opponent.module)):
        losses = side.losses(batch, 0)
        assert losses["total"].item() == 0.0
        losses["total"].backward()
        assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_a_batch_of_closed_mouths_has_the_losses_of_others(clips: FrameStore) -> None:
    """Processes add theirs up, and only some may have such a batch."""
    for step in (0, 1):
        names = []
        for places in (clips.landmarks, shut(clips)):
            given = task(replace(clips, landmarks=places))
            batch = given.batch(0, 4, 0, 1)
            names.append([*given.losses(batch, step), *given.opponent.losses(batch, step)])
        assert names[0] == names[1]


def test_two_frames_of_five_are_wide_where_any_is(clips: FrameStore) -> None:
    """One frame of each clip opens wider, by a third of the picture, and is white."""
    first = torch.tensor([clip.start for clip in clips.clips])
    places, frames = clips.landmarks.clone(), clips.frames.clone()
    places[first[:, None], [87, 14, 317], 1] += 0.3
    frames[first] = 255
    given = task(replace(clips, landmarks=places, frames=frames))
    white = [(given.batch(n, 1, 0, 1)["driving"] == 1.0).all().item() for n in range(60)]
    assert all(seen for n, seen in enumerate(white) if n % 5 < 2)
    assert not all(seen for n, seen in enumerate(white) if n % 5 >= 2)
