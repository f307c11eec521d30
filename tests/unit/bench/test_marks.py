"""The attacks on the invisible mark and their tables, `benchmarks/marks.py`."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("cv2")

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("marks")


@pytest.fixture
def attacks(marks: ModuleType) -> ModuleType:
    return importlib.import_module("marks_attacks")


def scene(seed: int = 0, side: int = 256) -> NDArray[np.uint8]:
    """Smooth colours, an edge, and a little noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 215, (6, 6, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    image = np.asarray(coarse, np.float32) + rng.normal(0, 2, (side, side, 3))
    image[side // 3 : side // 2, side // 4 : side // 2] *= 0.6
    return image.clip(0, 255).astype(np.uint8)


def test_geometric_attacks_move_pixels_as_far_as_they_say(attacks: ModuleType) -> None:
    image = scene()
    assert attacks.cropped(image, 0.9).shape == (230, 230, 3)
    np.testing.assert_array_equal(attacks.cropped(image, 0.5, x=0.0, y=1.0), image[128:, :128])
    assert attacks.scaled(image, 0.75, wide=1.05).shape == (192, 202, 3)
    white = np.zeros((201, 301, 3), np.uint8)
    white[:3, :3] = 255
    rows, columns = np.nonzero(attacks.perspective(white, 0.03)[..., 0] > 128)
    assert columns.max() == pytest.approx(0.9 * 0.03 * 300 + 2, abs=2)
    assert rows.max() == pytest.approx(0.4 * 0.03 * 200 + 2, abs=2)


def test_a_codec_keeps_the_frames_and_loses_more_at_a_higher_factor(marks: ModuleType, attacks: ModuleType) -> None:
    frames = [scene(0, 64), scene(0, 64)[:, ::-1], scene(1, 64)]
    good, bad = (attacks.recoded(frames, crf=crf) for crf in (18, 38))
    assert len(good) == len(bad) == 3
    assert marks.psnr(frames, good) > marks.psnr(frames, bad) + 6 > 26


def test_the_packages_own_code_takes_the_mark_away(marks: ModuleType, attacks: ModuleType) -> None:
    case = marks.Case("scene", "256", [scene()])
    clip = attacks.Clip(case.marked, case.marked, lambda frame, _: frame, case.watermark.apply, case.clean)
    assert marks.psnr(attacks.without(clip, 1.0), case.clean) > marks.psnr(case.marked, case.clean) + 3


def test_each_attack_has_a_name_of_its_own(attacks: ModuleType) -> None:
    names = [(attack.family, attack.strength) for attack in attacks.attacks()]
    assert len(set(names)) == len(names) > 60
    assert set(names) >= attacks.BARS > attacks.QUICK


@pytest.mark.slow
def test_results_are_measured_once_and_limits_show_what_breaks(
    marks: ModuleType, attacks: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = attacks.Attack("erased", "half", lambda clip: [frame // 2 * 0 + 128 for frame in clip.marked])
    kept = attacks.Attack("none", "one frame", lambda clip: clip.marked[:1])
    cache, case = marks.Cache(tmp_path), marks.Case("scene", "256", [scene(), scene()])
    found = marks.measure(case, cache, [kept, grey], list)
    assert found["attacks"]["none|one frame"]["bits"] == 32
    assert found["attacks"]["erased|half"] == {
        "found": False,
        "bits": None,
        "written": False,
        "score": pytest.approx(0, abs=4),
    }
    assert 40 < found["cost"]["worst"] <= found["cost"]["psnr"] < 50

    def fails(clip: object) -> list[NDArray[np.uint8]]:
        raise AssertionError("measured again")

    again = [attacks.Attack(attack.family, attack.strength, fails) for attack in (kept, grey)]
    assert marks.measure(case, cache, again, list) == found
    marks.show_attacks({"256": [found]}, [kept, grey])
    marks.show_limits({"256": [found]}, [kept, grey])
    shown = capsys.readouterr().out
    assert "| none | one frame | 1/1 | 1/1 | 1/1 | 0 |" in shown
    assert "read in every video |\n|---|---|\n| none | one frame |\n" in shown
    assert shown.endswith("|---|---|---|---|\n| erased | – | – | half |\n")


@pytest.mark.slow
def test_frames_without_a_mark_are_searched_once_and_counted(
    marks: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.fromarray(scene(number, 300)).save(photos / f"{number}.png")
    cache, figure = marks.Cache(tmp_path / "cache"), tmp_path / "scores.webp"
    marks.run_unmarked([photos], 2, 1, cache, None)
    marks.run_unmarked([photos], 3, 1, cache, figure)
    kept = cache.searches.read_text("utf-8").splitlines()
    assert len(kept) == 3
    assert "| all | 3 |" in capsys.readouterr().out
    with Image.open(figure) as drawn:
        assert drawn.width > 600
