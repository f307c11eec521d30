"""The cross-identity protocol on clips of the bundled portrait and an untrained network."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export3d.animate.drive import bundled_portrait, rebase
from export3d.camera import from_pose, head_position
from export3d.cli.main import main
from export3d.data.shard_writer import update
from export3d.data.shards import Record
from export3d.errors import ConfigError, InputError
from export3d.evaluation.protocols.cross import asked_motion, cross_identity
from export3d.evaluation.protocols.predictions import read_predictions
from export3d.evaluation.protocols.settings import RunSettings
from export3d.evaluation.reports.cross import Pair
from export3d.face.tracker import Track
from export3d.image import read_image
from export3d.model import Export3D, Planes
from export3d.motion.motion import Motion
from export3d.pretrained import adapt_resolution, load_pretrained, save_pretrained
from tests.made_up_networks import coefficient_network

Make = Callable[..., Record]


def made_motion(yaws: tuple[float, ...] = (5, 25, -10), shift: float = 0.1) -> Motion:
    angles = np.array([(yaw, 3.0, -2.0) for yaw in yaws])
    places = np.array([(0.01 * i + shift, shift, 2.4 + 0.02 * i) for i in range(len(yaws))])
    return Motion(np.random.default_rng(0).random((len(yaws), 52)), from_pose(angles, places), 25.0)


def test_absolute_motion_has_the_drivers_angles_and_expression_at_the_sources_place() -> None:
    driver = made_motion()
    source = from_pose(np.array([1.0, 2.0, 3.0]), np.array([-0.02, 0.03, 2.7]))
    asked = asked_motion(driver, source, np.zeros(52), "absolute")
    np.testing.assert_array_equal(asked.expression, driver.expression)
    np.testing.assert_allclose(asked.angles_deg, driver.angles_deg, atol=1e-3)
    position = head_position(asked.camera)
    np.testing.assert_allclose(np.median(position, axis=0), [-0.02, 0.03, 2.7], atol=1e-5)
    np.testing.assert_allclose(np.diff(position, axis=0), np.diff(head_position(driver.camera), axis=0), atol=1e-5)


def test_where_and_how_near_the_driver_stands_does_not_matter() -> None:
    source = from_pose(np.zeros(3), np.array([0.0, 0.0, 2.7]))
    near, far = made_motion(shift=0.0), made_motion(shift=0.2)
    asked = [asked_motion(driver, source, np.zeros(52), "absolute").camera for driver in (near, far)]
    np.testing.assert_allclose(*asked, atol=1e-5)


def test_relative_motion_is_what_animate_does() -> None:
    driver, source = made_motion(), from_pose(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 2.7]))
    expression = np.full(52, 0.2, np.float32)
    assert asked_motion(driver, source, expression, "relative") == rebase(driver, source, expression)


@pytest.fixture(scope="module")
def portraits() -> list[tuple[np.ndarray, Track]]:
    """The bundled portrait's crop at 256 and its mirror image, each with its track."""
    pytest.importorskip("mediapipe")
    from export3d.face.crop import crop
    from export3d.face.tracker import Tracker

    with Tracker() as tracker:
        portrait = read_image(bundled_portrait())
        picture = crop(portrait, tracker.track_image(portrait).crop)
        both = [picture, np.ascontiguousarray(picture[:, ::-1])]
        return [(picture, tracker.track_image(picture)) for picture in both]


@pytest.fixture
def people(tmp_path: Path, portraits: list, make_clip: Make) -> Path:
    """A clip of the astronaut that slides a little, and her mirror image as another person's portrait."""
    from export3d.video import VideoWriter

    (picture, track), (mirrored, mirrored_track) = portraits
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 25.0, (256, 256), crf=12) as writer:
        for step in range(6):
            writer.write(np.ascontiguousarray(np.roll(picture, 4 * step, axis=1)))
    still = io.BytesIO()
    Image.fromarray(mirrored).save(still, "PNG")

    def tracked(track: Track, frames: int) -> dict[str, np.ndarray]:
        landmarks = (track.crop.from_crop(track.landmarks) / 256).astype(np.float16)
        found = {"expression": track.motion.expression, "camera": track.motion.camera, "landmarks": landmarks}
        return {name: np.repeat(value, frames, 0) for name, value in found.items()}

    base = make_clip("moves")
    clip = replace(base, media=path.read_bytes(), **tracked(track, 6))
    info = {**base.info, "person": "person-still", "fingerprint": "print-still"}
    portrait = replace(
        base, key="still", media=still.getvalue(), suffix="png", found=np.ones(1, bool), info=info,
        **tracked(mirrored_track, 1),
    )  # fmt: skip
    folder = tmp_path / "data" / "val"
    update(folder, [clip, portrait])
    return folder


class Mirror:
    """Instead of a network: the source picture, whatever drives it."""

    warp = None

    def __init__(self, model: object) -> None:
        self.config = model.config

    def to(self, device: object) -> Mirror:
        return self

    def state_dict(self) -> dict:
        return {}

    def parameters(self):
        return iter([torch.zeros(1)])

    def encode(self, source, *measured):
        return source

    def planes(self, source, expression, *more):
        return Planes(source.expand(len(expression), -1, -1, -1), source, None)

    def frame_and_share(self, planes, camera):
        return planes.triplane, torch.zeros_like(planes.triplane[:, :1])


class Dim(Mirror):
    """The source picture, darker."""

    def frame_and_share(self, planes, camera):
        picture, share = super().frame_and_share(planes, camera)
        return 0.5 * picture - 0.5, share


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights whose result is the source itself, so that every figure is known."""
    from export3d.evaluation.protocols import cross

    real = cross.load_pretrained
    monkeypatch.setattr(cross, "load_pretrained", lambda weights: Mirror(real(weights)))


@pytest.mark.slow
@pytest.mark.usefixtures("copied")
def test_a_copy_keeps_the_identity_and_does_not_move(people: Path, tiny_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = cross_identity(people, out, weights=tiny_weights, frames=4, run=RunSettings(device="cpu"))
    (result,) = report.pairs
    assert (result.pair, result.frames, result.found, result.source_frame) == (Pair("still", "moves"), 4, 1.0, 0)
    assert result.values["csim_dlib"] > 0.98
    assert result.values["leak_dlib"] == pytest.approx(result.reference["leak_dlib"], abs=0.02)
    assert result.reference["csim_dlib"] == result.reference["leak_dlib"] < result.values["csim_dlib"]
    assert result.values["rendered"] == result.values["rendered_face"] == 0.0
    assert result.reference["apd"] < 3.0  # the driver tracked again is where it was
    written = json.loads((out / "report.json").read_text())
    assert written["pairs"][0]["values"]["csim_dlib"] == pytest.approx(result.values["csim_dlib"])
    assert written["settings"]["motion"] == "absolute"
    assert written["pairs"][0]["values"]["jawOpen"] is None  # every driving frame is the same
    assert (out / "report.md").read_text() == report.markdown()
    assert read_image(out / "sheet.png").shape[1] > 3 * 256
    page = (out / "report.html").read_text()
    assert page.count("data:image/webp") == 1
    assert 'alt="still by moves: source, driving frame, ours"' in page
    assert "real pictures</th>" in page
    assert "two strangers" in page
    assert "Against the earlier run" not in page
    assert "flicker" not in page  # four of six frames are never three in a row

    again = cross_identity(
        people,
        tmp_path / "again",
        weights=tiny_weights,
        frames=4,
        run=RunSettings(device="cpu"),
        against=out / "report.json",
    )
    assert again.difference("csim_dlib").mean == pytest.approx(0.0, abs=1e-6)
    assert "ours minus tiny.safetensors" in again.markdown()
    assert json.loads(again.to_json())["against"]["report"] == "tiny.safetensors"
    assert "Against the earlier run" in (tmp_path / "again" / "report.html").read_text()
    with pytest.raises(InputError, match=r"other settings \(frames\)"):
        cross_identity(people, tmp_path / "x", weights=tiny_weights, frames=3, against=out / "report.json")


@pytest.fixture
def two_pairs(people: Path, portraits: list) -> Path:
    """The astronaut's clip drives her mirror image and herself under another name."""
    from export3d.data.shards import read_shards

    base = next(record for record in read_shards(people) if record.key == "still")
    (picture, track), _ = portraits
    still = io.BytesIO()
    Image.fromarray(picture).save(still, "PNG")
    landmarks = (track.crop.from_crop(track.landmarks) / 256).astype(np.float16)
    info = {**base.info, "person": "person-twin", "fingerprint": "print-twin"}
    motion = {"expression": track.motion.expression, "camera": track.motion.camera}
    update(people, [replace(base, key="twin", media=still.getvalue(), landmarks=landmarks, info=info, **motion)])
    return people


@pytest.mark.slow
@pytest.mark.usefixtures("copied")
def test_a_cut_run_goes_on_and_other_settings_begin_anew(
    two_pairs: Path, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export3d.evaluation.protocols import cross

    out, scored, original = tmp_path / "out", list[str](), cross._Work._score

    def watched(self, pair: Pair) -> None:
        scored.append(pair.source)
        if scored == ["still", "twin"]:
            raise KeyboardInterrupt
        original(self, pair)

    monkeypatch.setattr(cross._Work, "_score", watched)
    with pytest.raises(KeyboardInterrupt):
        cross_identity(two_pairs, out, weights=tiny_weights, frames=2, run=RunSettings(device="cpu"))
    assert not (out / "report.json").exists()
    told: list[tuple[int, int]] = []
    cross_identity(
        two_pairs,
        out,
        weights=tiny_weights,
        frames=2,
        run=RunSettings(device="cpu"),
        progress=lambda *now: told.append(now),
    )
    assert scored == ["still", "twin", "twin"]
    assert told == [(2, 4), (4, 4)]
    whole = cross_identity(two_pairs, tmp_path / "fresh", weights=tiny_weights, frames=2, run=RunSettings(device="cpu"))
    assert (out / "report.json").read_text() == whole.to_json()
    assert (out / "report.html").read_bytes() == (tmp_path / "fresh" / "report.html").read_bytes()
    before = len(scored)
    cross_identity(two_pairs, out, weights=tiny_weights, frames=3, run=RunSettings(device="cpu"), max_pairs=1)
    assert len(scored) == before + 1


@pytest.mark.slow
@pytest.mark.usefixtures("copied")
def test_saved_pictures_have_the_same_identity(people: Path, tiny_weights: Path, tmp_path: Path) -> None:
    saved, out = tmp_path / "saved", tmp_path / "out"
    options = ["--weights", str(tiny_weights), "--frames", "6", "--save", str(saved), "--device", "cpu"]
    assert main(["evaluate", "cross", str(people), "-o", str(out), *options]) == 0
    assert [(clip.name, clip.count, clip.size) for clip in read_predictions(saved)] == [("still_by_moves", 6, 64)]
    scored = ["evaluate", "predictions", str(saved), "-o", str(tmp_path / "again"), "--no-truth"]
    assert main(scored) == 0
    ours = json.loads((out / "report.json").read_text())["pairs"][0]["values"]
    theirs = json.loads((tmp_path / "again" / "report.json").read_text())["clips"][0]["scores"]["prediction"]
    # The source's landmarks are those of the preparation there, and read from the picture here.
    assert theirs["csim_dlib"] == pytest.approx(ours["csim_dlib"], abs=0.02)
    assert theirs["flicker_face"] == pytest.approx(ours["flicker_face"], abs=0.01)  # six frames in a row
    with pytest.raises(InputError, match="already holds images of still_by_moves from another run"):
        cross_identity(people, tmp_path / "x", weights=tiny_weights, frames=6, run=RunSettings(save=saved))


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Reads the mean colour of a face as the first three coefficients; all else is constant."""
    pytest.importorskip("onnxruntime")
    path = tmp_path / "deep3d.onnx"
    path.write_bytes(coefficient_network())
    return path


@pytest.mark.slow
def test_a_network_reads_expression_and_pose_in_result_and_driving_frames(
    people: Path, tiny_weights: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export3d.evaluation.protocols import cross

    real = cross.load_pretrained
    monkeypatch.setattr(cross, "load_pretrained", lambda weights: Dim(real(weights)))
    saved, out, again = tmp_path / "saved", tmp_path / "out", tmp_path / "again"
    options = ["--weights", str(tiny_weights), "--frames", "3", "--save", str(saved), "--device", "cpu"]
    assert main(["evaluate", "cross", str(people), "-o", str(out), "--expression", str(network), *options]) == 0
    report = json.loads((out / "report.json").read_text())
    ours, reference = report["pairs"][0]["values"], report["pairs"][0]["reference"]
    assert "64 expression coefficients" in report["measures"]["aed"]
    assert "deep3d.onnx" in report["settings"]["expression and pose"]
    assert ours["apd"] == ours["apd6"] == 0.0  # the network sees no pose
    assert 3 * 0.05 / 64 < ours["aed"] < 3 * 0.6 / 64  # three of 64 coefficients differ, by the lost brightness
    assert not {"aed", "apd", "apd6"} & set(reference)
    assert {"yaw", "jawOpen", "gaze_yaw", "mouthPucker", "lip_gap"} <= set(reference)
    assert ours["lip_gap"] is reference["lip_gap"] is None  # the driver slides but its lips do not move
    assert (
        main(["evaluate", "predictions", str(saved), "-o", str(again), "--no-truth", "--expression", str(network)]) == 0
    )
    theirs = json.loads((again / "report.json").read_text())["clips"][0]["scores"]["prediction"]
    assert theirs["aed"] == pytest.approx(ours["aed"], rel=0.02)

    plain = cross_identity(people, tmp_path / "plain", weights=tiny_weights, frames=3, run=RunSettings(device="cpu"))
    assert plain.pairs[0].values["aed"] != pytest.approx(ours["aed"])
    with pytest.raises(InputError, match=r"other settings \(expression and pose\)"):
        cross_identity(people, tmp_path / "x", weights=tiny_weights, frames=3, against=out / "report.json")


@pytest.mark.slow
@pytest.mark.usefixtures("copied")
def test_the_papers_coefficients_are_scored_by_a_network_alone(
    people: Path, tiny_weights: Path, network: Path, tmp_path: Path
) -> None:
    from export3d.data.shards import read_shards

    model = load_pretrained(tiny_weights)
    weights = save_pretrained(Export3D(model.config.in_space("bfm64")), tmp_path / "bfm.safetensors", {})
    rng = np.random.default_rng(0)
    records = [
        replace(record, expression=rng.normal(size=(record.frames, 64)).astype(np.float32))
        for record in read_shards(people)
    ]
    split = tmp_path / "bfm" / "val"
    update(split, records, space="bfm64")
    options = {"weights": weights, "frames": 3, "run": RunSettings(device="cpu")}
    with pytest.raises(InputError, match=r"expressions in bfm64, which the tracker cannot read.*--expression"):
        cross_identity(split, tmp_path / "x", **options)
    with pytest.raises(InputError, match="bfm64 but the weights were trained on arkit52"):
        cross_identity(split, tmp_path / "x", expression=network, weights=tiny_weights)
    for motion in ("absolute", "relative"):
        [pair] = cross_identity(split, tmp_path / motion, expression=network, motion=motion, **options).pairs
        assert pair.values["aed"] < 3 * 0.05 / 64  # her mirror image has her colours
        assert {"aed", "jawOpen"} & set(pair.reference) == set()
        assert pair.values["found"] == 1.0


@pytest.mark.slow
def test_several_processes_give_the_same_report(
    two_pairs: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes; sums of floats depend on the number of threads
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        reports = [
            cross_identity(
                two_pairs,
                tmp_path / str(workers),
                weights=small_weights,
                frames=2,
                run=RunSettings(device="cpu", workers=workers),
            )
            for workers in (0, 2)
        ]
    finally:
        torch.set_num_threads(threads)
    assert reports[0].to_json() == reports[1].to_json()
    assert len(reports[0].pairs) == 2
    assert (tmp_path / "0" / "report.html").read_bytes() == (tmp_path / "2" / "report.html").read_bytes()
    sheets = [read_image(tmp_path / name / "sheet.png") for name in ("0", "2")]
    assert np.array_equal(*sheets), "signatures differ, pixels do not"


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged weights at 128 pixels with few samples a ray: faces that are found, quickly."""
    model = load_pretrained()
    config = replace(
        model.config,
        generator=replace(model.config.generator, image_size=128),
        render=replace(model.config.render, resolution=32, coarse=8),
    )
    small = Export3D(config)
    small.load_state_dict(adapt_resolution(model.state_dict(), small))
    return save_pretrained(small, tmp_path_factory.mktemp("weights") / "small.safetensors", {"images_seen": 0})


def test_an_untrained_network_shows_no_face_and_that_is_said(people: Path, tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no face found in still by moves"):
        cross_identity(people, tmp_path / "out", weights=tiny_weights, frames=2, run=RunSettings(device="cpu"))


def test_a_network_that_shows_the_moved_source_keeps_its_face(
    people: Path, rigid_weights: Path, tmp_path: Path
) -> None:
    """It is told where the source's landmarks are, and turns them to the driver's camera."""
    report = cross_identity(people, tmp_path / "out", weights=rigid_weights, frames=2, run=RunSettings(device="cpu"))
    (result,) = report.pairs
    assert result.found == 1.0
    assert result.values["csim_dlib"] > 0.9
    assert result.values["apd"] < 4.0


@pytest.mark.parametrize(
    ("pair", "why"),
    [("nobody,moves", "does not hold"), ("moves,still", "still image"), ("moves,moves", "one and the same person")],
)
def test_pairs_that_cannot_be_are_refused(
    people: Path, tiny_weights: Path, tmp_path: Path, pair: str, why: str
) -> None:
    (tmp_path / "pairs.csv").write_text(f"source,driver\n{pair}\n")
    with pytest.raises(InputError, match=why):
        cross_identity(people, tmp_path / "out", weights=tiny_weights, pairs=tmp_path / "pairs.csv")


def test_settings_that_cannot_work_are_refused(split: Path, tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        cross_identity(split, tmp_path / "out", weights=tiny_weights, frames=0)
