import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from export3d import camera
from export3d.errors import BadMotionFile
from export3d.motion import bfm64
from export3d.motion.bfm64 import load_bfm64, load_expression
from tests.hostile import Bomb


def coefficients(rng: np.random.Generator, frames: int = 30) -> np.ndarray:
    """(T, 257) coefficients as Deep3DFaceRecon gives them for a head that turns a little."""
    out = rng.normal(0, 0.5, (frames, 257))
    out[:, 224:227] = rng.normal(0, 0.15, (frames, 3))
    out[:, 254:257] = rng.normal(0, 0.05, (frames, 3))
    return out


def mat(path: Path, **arrays: np.ndarray) -> Path:
    pytest.importorskip("scipy.io").savemat(path, arrays)
    return path


def test_all_layouts_give_the_same_motion(rng: np.random.Generator, tmp_path: Path) -> None:
    whole = coefficients(rng)
    parts = {"exp": whole[:, 80:144], "angle": whole[:, 224:227], "trans": whole[:, 254:257], "id": whole[:, :80]}
    np.savez(tmp_path / "whole.npz", coeff=whole)
    np.savez_compressed(tmp_path / "parts.npz", **parts)
    np.savez(tmp_path / "unlike.npz", anything=whole, lm68=np.zeros((30, 68, 2)))
    expected = load_bfm64(tmp_path / "whole.npz")
    assert (len(expected), expected.space, expected.fps) == (30, "bfm64", 25.0)
    np.testing.assert_array_equal(expected.expression, whole[:, 80:144].astype(np.float32))
    for path in (tmp_path / "parts.npz", tmp_path / "unlike.npz", mat(tmp_path / "a.mat", **parts),
                 mat(tmp_path / "b.mat", coeff=whole)):  # fmt: skip
        assert load_bfm64(path) == expected


def test_a_folder_of_single_frames_is_read_in_order(rng: np.random.Generator, tmp_path: Path) -> None:
    whole = coefficients(rng, 12)
    np.savez(tmp_path / "whole.npz", coeff=whole)
    folder = tmp_path / "frames"
    folder.mkdir()
    for k, row in enumerate(whole):
        np.savez(folder / f"frame{k}.npz", exp=row[None, 80:144], angle=row[None, 224:227], trans=row[None, 254:257])
    assert load_bfm64(folder) == load_bfm64(tmp_path / "whole.npz")


def project_with_the_model(row: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Deep3DFaceRecon's own way from model points (N, 3) to image points, widths of its 224 crop, y down."""
    x, y, z = row[224:227]
    rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    ry = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    rz = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    moved = points @ (rz @ ry @ rx).T + row[254:257]
    depth = 10.0 - moved[:, 2]
    return np.stack([moved[:, 0] / depth, -moved[:, 1] / depth], axis=-1) * 1015 / 224 + 0.5


FIVE_POINTS = np.array(
    [
        [-0.311, 0.290, 0.134],
        [0.310, 0.290, 0.132],
        [0.003, -0.046, 0.552],
        [-0.252, -0.381, 0.224],
        [0.248, -0.381, 0.222],
    ]
)


def test_model_points_land_where_the_model_puts_them_up_to_crop_and_lens(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    """One scale and one shift for the whole clip explain the difference, to a longer lens' parallax."""
    whole = coefficients(rng)
    np.savez(tmp_path / "a.npz", coeff=whole)
    ours = load_bfm64(tmp_path / "a.npz")
    world = (FIVE_POINTS * 10 + [0, 0, 2.07]) * [1, -1, -1] * camera.UNITS_PER_CM
    mine = camera.project(np.tile(world, (30, 1, 1)), ours.camera)
    theirs = np.stack([project_with_the_model(row, FIVE_POINTS) for row in whole])
    a, b = mine - mine.mean(axis=(0, 1)), theirs - theirs.mean(axis=(0, 1))
    scale = (a * b).sum() / (b * b).sum()
    assert 0.5 < scale < 0.8
    assert np.abs(a - scale * b).max() < 0.012


def test_the_model_s_angles_have_our_signs(tmp_path: Path) -> None:
    """In the model's axes a positive y angle turns to the image's right, a positive x angle looks down."""
    whole = np.zeros((3, 257))
    whole[1, 225] = whole[2, 224] = np.radians(10)
    np.savez(tmp_path / "a.npz", coeff=whole)
    np.testing.assert_allclose(
        load_bfm64(tmp_path / "a.npz").angles_deg, [[0, 0, 0], [10, 0, 0], [0, -10, 0]], atol=1e-4
    )


def test_the_median_nose_is_centred_at_the_usual_distance(rng: np.random.Generator, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", coeff=coefficients(rng))
    ours = load_bfm64(tmp_path / "a.npz", fps=30)
    nose = np.array([[0.0, -0.4632, 7.5866]]) * [1, -1, -1] * camera.UNITS_PER_CM
    seen = camera.project(np.tile(nose, (30, 1, 1)), ours.camera)
    np.testing.assert_allclose(np.median(seen[:, 0], axis=0), [0.5, 0.5], atol=1e-3)
    assert np.median(camera.head_position(ours.camera)[:, 2]) == pytest.approx(camera.RADIUS, rel=1e-5)
    assert ours.fps == 30


@pytest.mark.parametrize(
    ("arrays", "cause"),
    [
        ({"coeff": np.zeros((5, 256))}, "257 layout"),
        ({"exp": np.zeros((5, 64))}, "257 layout"),
        ({"exp": np.zeros((5, 64)), "angle": np.zeros((4, 3)), "trans": np.zeros((5, 3))}, "with one T"),
        ({"exp": np.zeros((5, 63)), "angle": np.zeros((5, 3)), "trans": np.zeros((5, 3))}, "with one T"),
        ({"coeff": np.zeros((0, 257))}, "with one T"),
        ({"coeff": np.full((5, 257), np.nan)}, "NaN"),
        ({"coeff": np.full((5, 257), 11.0)}, "behind the camera"),
        ({"text": np.array(["a", "b"])}, "found no arrays"),
        ({}, "found no arrays"),
    ],
)
def test_other_coefficients_are_refused_with_the_cause(
    tmp_path: Path, arrays: dict[str, np.ndarray], cause: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(BadMotionFile, match=cause) as caught:
        load_bfm64(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(caught.value)


def test_pickled_objects_inside_an_npz_are_not_loaded(tmp_path: Path) -> None:
    hostile = np.empty(1, dtype=object)
    hostile[0] = Bomb(tmp_path / "proof")
    np.savez(tmp_path / "a.npz", coeff=hostile)
    with pytest.raises(BadMotionFile, match=r"a\.npz"):
        load_bfm64(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("coeff.npy", pickle.dumps(Bomb(tmp_path / "proof")))
    with pytest.raises(BadMotionFile, match=r"b\.npz"):
        load_bfm64(tmp_path / "b.npz")
    assert not (tmp_path / "proof").exists()


def test_the_expression_alone_needs_neither_angles_nor_translations(rng: np.random.Generator, tmp_path: Path) -> None:
    whole = coefficients(rng, 12)
    np.savez(tmp_path / "whole.npz", coeff=whole)
    np.savez(tmp_path / "exp.npz", exp=whole[:, 80:144], trans=np.zeros((3, 3)))
    (tmp_path / "frames").mkdir()
    for k, row in enumerate(whole):
        np.savez(tmp_path / "frames" / f"{k}.npz", exp=row[80:144])
    for name in ("whole.npz", "exp.npz", "frames"):
        found = load_expression(tmp_path / name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, whole[:, 80:144].astype(np.float32))
    np.savez(tmp_path / "turned.npz", exp=np.zeros((64, 12)))
    with pytest.raises(BadMotionFile, match=r"turned\.npz must hold exp \(T, 64\)"):
        load_expression(tmp_path / "turned.npz")
    for number, value in enumerate((np.nan, np.inf, -1001.0)):
        np.savez(tmp_path / f"{number}.npz", exp=np.where(np.arange(12)[:, None] > 8, value, np.zeros((12, 64))))
        with pytest.raises(BadMotionFile, match=r"in frame 9 \(3 of 12 frames\)"):
            load_expression(tmp_path / f"{number}.npz")


@pytest.mark.parametrize("name", ["a.npz", "a.mat"])
def test_damaged_coefficient_files_are_refused(rng: np.random.Generator, tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "a.npz", coeff=coefficients(rng))
    if name == "a.mat":
        mat(tmp_path / name, coeff=coefficients(rng))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadMotionFile, match="cannot be read"):
        load_bfm64(tmp_path / name)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfm64, "_MAX_BYTES", 4096)
    np.savez_compressed(tmp_path / "bomb.npz", coeff=np.zeros((100, 257)))
    with pytest.raises(BadMotionFile, match="would unpack"):
        load_bfm64(tmp_path / "bomb.npz")


def test_other_files_and_empty_folders_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((5, 257)))
    (tmp_path / "a.mat").write_bytes(buffer.getvalue())
    (tmp_path / "b.mat").write_bytes(b"MATLAB 7.3 MAT-file" + bytes(600))
    (tmp_path / "empty").mkdir()
    for name, cause in (
        ("a.mat", "bare NumPy array"),
        ("b.mat", "-v7"),
        ("empty", "no .mat or .npz"),
        ("c.mat", "not exist"),
    ):
        with pytest.raises(BadMotionFile, match=cause):
            load_bfm64(tmp_path / name)
