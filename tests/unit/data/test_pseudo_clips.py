"""The bank of expressions, and a whole run on the bundled portrait."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export3d.camera import LABEL_SIZE, head_angles
from export3d.data.frames import FrameStore
from export3d.data.pseudo_clips import BANK_NAME, Bank, pseudo_clips
from export3d.data.shard_writer import update, verify
from export3d.data.shards import Record, read_index, read_shards
from export3d.errors import ConfigError, InputError
from export3d.face import pose
from export3d.motion.arkit import ARKIT52


def made_clips(rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """Three clips of faces at rest that now and then do one thing."""
    clips = []
    for number in range(3):
        scores = np.full((300, 52), 0.1) + rng.uniform(0.0, 0.02, (300, 52))
        for start, name in enumerate(ARKIT52):
            scores[start * 5 : start * 5 + 3, ARKIT52.index(name)] += rng.uniform(0.3, 0.8, (3))
        clips.append((f"clip{number}", scores.astype(np.float32)))
    return clips


def test_the_bank_depends_on_the_clips_alone(rng: np.random.Generator) -> None:
    clips = made_clips(rng)
    one, two = Bank.of(clips, 8), Bank.of(clips, 8)
    np.testing.assert_array_equal(one.changes, two.changes)
    assert (one.digest, one.origins) == (two.digest, two.origins)
    assert Bank.of(clips[:2], 8).digest != one.digest


def test_changes_are_measured_from_rest_and_leave_the_gaze_out(rng: np.random.Generator) -> None:
    clips = made_clips(rng)
    bank = Bank.of(clips, 8)
    scores = dict(clips)
    for change, kind, (name, frame) in zip(bank.changes, bank.kinds, bank.origins):
        moved = int(np.argmax(np.abs(change)))
        assert abs(scores[name][frame][moved] - 0.1 - change[moved]) < 0.05
        if kind == "jaw":
            assert change[ARKIT52.index("jawOpen")] > 0.2
    assert not bank.changes[:, [n for n, name in enumerate(ARKIT52) if name.startswith("eyeLook")]].any()
    assert {"blink", "jaw", "smile", "pucker", "brows up", "any"} <= set(bank.kinds)


def test_a_draw_shows_every_kind_before_any_twice(rng: np.random.Generator) -> None:
    bank = Bank.of(made_clips(rng), 8)
    kinds = len(set(bank.kinds))
    numbers = bank.draw(12, np.random.default_rng(3))
    assert len({bank.kinds[n] for n in numbers[:kinds]}) == kinds
    assert len(set(numbers.tolist())) == 12
    np.testing.assert_array_equal(numbers, bank.draw(12, np.random.default_rng(3)))


def test_too_few_frames_make_no_bank() -> None:
    with pytest.raises(InputError, match="add videos"):
        Bank.of([("clip", np.zeros((3, 52), np.float32))])


def test_a_split_without_portraits_is_refused(tmp_path: Path) -> None:
    update(tmp_path / "train", [])
    with pytest.raises(InputError, match="no portraits"):
        pseudo_clips(tmp_path / "train", tmp_path / "out", "a.npz", "b.npz")
    with pytest.raises(ConfigError, match="two frames"):
        pseudo_clips(tmp_path / "train", tmp_path / "out", "a.npz", "b.npz", frames=1)


@pytest.fixture(scope="module")
def run(
    shared_models: Path, astronaut_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Record]]:
    """A split of the bundled portrait and made-up clips, and the pseudo-clips of it."""
    pytest.importorskip("scipy")
    pytest.importorskip("mediapipe", exc_type=ImportError)
    from export3d.data.clips import Limits, records_of
    from export3d.face.tracker import Tracker

    folder = tmp_path_factory.mktemp("pseudo")
    info = {"person": "astronaut", "terms": "open", "fingerprint": "astronaut", "file": "astronaut.png"}
    with Tracker() as tracker:
        stills, _ = records_of(astronaut_path, "astronaut", info, tracker, Limits())
    picture = io.BytesIO()
    Image.new("RGB", (256, 256)).save(picture, format="PNG")
    clips = [
        Record(
            name,
            b"not decoded",
            "mp4",
            scores,
            np.zeros((len(scores), LABEL_SIZE), np.float32),
            np.zeros((len(scores), 478, 2), np.float16),
            np.ones(len(scores), bool),
            {"person": name, "terms": "open", "fingerprint": name},
        )
        for name, scores in made_clips(np.random.default_rng(0))
    ]
    update(folder / "train", [*stills, *clips])
    models = shared_models / "face3d"
    model, places = models / "ict_face.npz", models / "mediapipe_to_ict.npz"
    report = pseudo_clips(folder / "train", folder / "out", model, places, frames=11, workers=0)
    assert (report.records, report.done, report.skipped) == (1, 1, 0)
    again = pseudo_clips(folder / "train", folder / "out", model, places, frames=11, workers=0)
    assert (again.records, again.done, again.skipped) == (1, 0, 1)
    return folder / "out", [*stills, *read_shards(folder / "out")]


def test_the_new_split_is_like_any_other(run: tuple[Path, list[Record]]) -> None:
    out, (_, clip) = run
    assert verify(out) == []
    (entry,) = read_index(out).entries
    assert (entry.kind, entry.person, entry.terms) == ("video", "astronaut", "open")
    store = FrameStore.load(out, 64)
    assert len(store) == clip.frames
    assert store.found.all()


def test_labels_tell_what_the_pictures_show(run: tuple[Path, list[Record]]) -> None:
    out, (still, clip) = run
    numbers = clip.info["bank"]
    assert numbers[0] == -1
    assert len(numbers) == clip.frames >= 9
    assert np.abs(clip.expression[0] - still.expression[0]).max() < 0.15
    changes = {
        line["number"]: np.array(line["change"]) for line in json.loads((out / BANK_NAME).read_text())["changes"]
    }
    for column in (ARKIT52.index("jawOpen"), ARKIT52.index("eyeBlinkLeft")):
        asked = np.array([0.0, *(changes[n][column] for n in numbers[1:])])
        shown = clip.expression[:, column] - clip.expression[0, column]
        assert shown[asked > 0.25].min(initial=1.0) > 0.02
        assert np.abs(shown[np.abs(asked) < 0.02]).max(initial=0.0) < 0.25
    turned = np.abs(np.array(clip.info["turn_deg"])).max(1) > 0
    angles = head_angles(clip.camera.astype(np.float64))
    landmarks = clip.landmarks.astype(np.float64) * 256
    shape = pose.person_shape(landmarks, 256)
    labels = pose.fit_cameras(landmarks, 256, shape, clip.expression)[0]  # as the tracker fits it
    np.testing.assert_allclose(angles, head_angles(labels), atol=0.2)
    assert np.abs(angles - head_angles(pose.fit_cameras(landmarks, 256, shape)[0])).max() > 1.0
    for axis in (0, 2):
        asked = np.array(clip.info["turn_deg"])[turned, axis]
        assert np.corrcoef(asked, angles[turned, axis])[0, 1] > 0.8
    assert 0.3 <= turned[1:].mean() <= 0.7
