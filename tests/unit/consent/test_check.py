"""Who passes: the same face in other photos, nobody else, under each policy."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from export3d.consent import check, descriptor
from export3d.consent.check import THRESHOLD, is_bundled, names_matching, nearest, require_consent
from export3d.consent.descriptor import describe
from export3d.consent.register import Entry, Register, today
from export3d.errors import ConsentRefused, InputError
from export3d.face.tracker import Track, Tracker
from export3d.policy import Policy
from tests.group_photo import group_photo

REGISTER = Policy(consent="register")


@pytest.fixture(scope="session")
def astronaut_face(tracker: Tracker, astronaut_path: Path) -> tuple[np.ndarray, Track]:
    with Image.open(astronaut_path) as image:
        photo = np.array(image.convert("RGB"))
    return photo, tracker.track_image(photo)


def entry_of(vector: np.ndarray, name: str = "A", **changes: object) -> Entry:
    made = Entry(
        id="0" * 8, name=name, note="", added=today(), expires=None, network=descriptor.network(), descriptor=vector
    )
    return replace(made, **changes)  # type: ignore[arg-type]


# --- the descriptor ---------------------------------------------------------------------------------------------------


def test_a_face_and_its_mirror_image_are_one(tracker: Tracker, astronaut_face: tuple) -> None:
    photo, track = astronaut_face
    mirrored = np.ascontiguousarray(photo[:, ::-1])
    own, other = describe(photo, track), describe(mirrored, tracker.track_image(mirrored))
    assert own.shape == (128,)
    assert np.linalg.norm(own) == pytest.approx(1.0, abs=1e-6)
    assert own @ other > 0.995


def changed(photo: np.ndarray) -> dict[str, Image.Image]:
    image, jpeg = Image.fromarray(photo), io.BytesIO()
    image.resize((200, 200), Image.Resampling.LANCZOS).save(jpeg, "JPEG", quality=50)
    return {
        "mirrored": ImageOps.mirror(image),
        "brighter": image.point(lambda value: min(255, round(1.25 * value))),
        "darker": image.point(lambda value: round(0.6 * value)),
        "grey": image.convert("L").convert("RGB"),
        "small JPEG": Image.open(jpeg),
        "on its side": image.transpose(Image.Transpose.ROTATE_90),
    }


@pytest.mark.slow
def test_other_copies_of_a_photo_show_the_same_person(tracker: Tracker, astronaut_face: tuple) -> None:
    own = entry_of(describe(*astronaut_face))
    for name, image in changed(astronaut_face[0]).items():
        photo = np.asarray(image.convert("RGB"))
        match = nearest(describe(photo, tracker.track_image(photo)), [own])
        assert match is not None
        assert match.same_person, f"{name}: {match.similarity}"


def test_another_person_is_nobody(tracker: Tracker, astronaut_face: tuple, stranger: np.ndarray) -> None:
    match = nearest(describe(stranger, tracker.track_image(stranger)), [entry_of(describe(*astronaut_face))])
    assert match is not None
    assert not match.same_person


@pytest.mark.slow
def test_two_photos_of_one_person_match_and_those_of_others_do_not(tracker: Tracker, shared_data: Path) -> None:
    """A neutral and a smiling photo of each of three people."""
    vectors = {}
    for person in ("p0274", "p1119", "p0372"):
        for number in (1, 2):
            photo = np.array(Image.open(shared_data / "portraits" / f"{person}_0{number}.jpg").convert("RGB"))
            vectors[person, number] = describe(photo, tracker.track_image(photo))
    for (person, number), vector in vectors.items():
        for (other, _), compared in vectors.items():
            assert (vector @ compared >= THRESHOLD) == (person == other), (person, number, other)


def test_the_nearest_entry_is_named_and_other_networks_are_not_compared() -> None:
    axis = np.eye(3, dtype=np.float32)
    near = np.array([0.8, 0.6, 0.0], np.float32)
    entries = [entry_of(axis[0], "A"), entry_of(axis[1], "B"), entry_of(near, "C", network="another")]
    match = nearest(near, entries)
    assert match is not None
    assert (match.entry.name, match.similarity) == ("A", pytest.approx(0.8))
    assert nearest(near, entries[2:]) is None


def test_a_descriptor_of_another_length_is_damage() -> None:
    vector = np.eye(3, dtype=np.float32)[0]
    with pytest.raises(InputError, match="entry 00000000 has 1 numbers, not 3; remove it"):
        nearest(vector, [entry_of(vector), entry_of(vector[:1])])


def test_the_names_that_match_a_face_are_those_that_count() -> None:
    axis = np.eye(3, dtype=np.float32)
    entries = [
        entry_of(axis[0], "C"), entry_of(axis[0], "B"), entry_of(axis[0], "B"), entry_of(axis[1], "D"),
        entry_of(axis[0], "E", network="another"), entry_of(axis[0], "F", expires=today() - timedelta(days=1)),
        entry_of(axis[0, :1], "G"),
    ]  # fmt: skip
    assert names_matching([entry_of(axis[2]), entry_of(axis[0])], entries) == ["B", "C"]
    assert names_matching([entry_of(axis[0], network="another"), entry_of(axis[2])], entries) == []


# --- the policy -------------------------------------------------------------------------------------------------------


def test_an_open_policy_describes_nobody(
    policy: Path, astronaut_face: tuple, stranger: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "Register", None)
    monkeypatch.setattr(descriptor, "describe", None)
    require_consent(stranger, [astronaut_face[1]], policy=Policy())


def test_the_bundled_portrait_needs_no_consent(policy: Path, astronaut_face: tuple) -> None:
    photo, track = astronaut_face
    assert is_bundled(photo)
    require_consent(photo, [track])
    changed = photo.copy()
    changed[0, 0, 0] ^= 1
    assert not is_bundled(changed)
    with pytest.raises(ConsentRefused):
        require_consent(changed, [track])


def test_who_is_not_in_the_register_is_refused_in_a_sentence(
    policy: Path, tracker: Tracker, astronaut_face: tuple, stranger: np.ndarray
) -> None:
    tracks = [tracker.track_image(stranger)]
    sentence = (
        r"^the face in me\.jpg matches nobody in the register of consent \(.*consent\.json; {}, threshold 0\.950\), "
    )
    with pytest.raises(ConsentRefused, match=sentence.format("no entry to compare with") + ".*export3d consent add"):
        require_consent(stranger, tracks, "me.jpg")
    register = Register(policy)
    register.add(describe(*astronaut_face), descriptor.network(), "Eileen")
    with pytest.raises(ConsentRefused, match=sentence.format(r"highest similarity 0\.\d{3}")) as refused:
        require_consent(stranger, tracks, "me.jpg")
    assert "Eileen" not in str(refused.value)
    own = register.add(describe(stranger, tracks[0]), descriptor.network(), "B", expires=today())
    require_consent(stranger, tracks, "me.jpg")
    register.remove(own.id)
    with pytest.raises(ConsentRefused):
        require_consent(stranger, tracks, "me.jpg")


def test_an_expired_consent_lets_nobody_pass(
    policy: Path, tracker: Tracker, stranger: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    track = tracker.track_image(stranger)
    Register(policy).add(describe(stranger, track), descriptor.network(), "B", expires=today())
    tomorrow = today() + timedelta(days=1)
    monkeypatch.setattr("export3d.consent.register.today", lambda: tomorrow)
    with pytest.raises(ConsentRefused):
        require_consent(stranger, [track])


def test_a_damaged_register_lets_nobody_pass(policy: Path, tracker: Tracker, stranger: np.ndarray) -> None:
    policy.parent.mkdir()
    policy.write_text("{")
    with pytest.raises(InputError, match="damaged"):
        require_consent(stranger, [tracker.track_image(stranger)])


@pytest.mark.slow
def test_of_several_people_those_who_are_animated_are_checked(
    policy: Path, tracker: Tracker, astronaut: np.ndarray, stranger: np.ndarray
) -> None:
    """The astronaut, who agreed, left of somebody who did not."""
    photo = np.concatenate([astronaut[:256, 96:352], np.full((256, 30, 3), 208, np.uint8), np.pad(
        stranger, ((24, 24), (0, 0), (0, 0)), mode="edge")], axis=1)  # fmt: skip
    tracks = tracker.track_faces(photo)
    assert len(tracks) == 2
    Register(policy).add(describe(photo, tracks[0]), descriptor.network(), "A")
    require_consent(photo, tracks[:1])
    with pytest.raises(ConsentRefused, match=r"^face 2 in us\.png"):
        require_consent(photo, tracks, "us.png")
    both = group_photo(astronaut)
    require_consent(both, tracker.track_faces(both))
