"""MediaPipe behind our Protocol."""

import subprocess
import sys
import tracemalloc
from concurrent.futures import thread as pool

import numpy as np
import pytest
from PIL import Image

from export3d.errors import Export3DError, MissingExtra, ShapeError
from export3d.face.crop import CropBox
from export3d.face.landmarks import FaceLandmarker, _search_regions, glance
from export3d.face.tracker import Tracker
from export3d.motion.arkit import ARKIT52


def collage(head, *places, size=(720, 1280)):
    """A grey picture with the astronaut's head, `width` pixels wide, at each (x, y, width)."""
    picture = np.full((*size, 3), 110, np.uint8)
    for x, y, width in places:
        height = round(width * head.shape[0] / head.shape[1])
        drawn = np.asarray(Image.fromarray(head).resize((width, height), Image.Resampling.LANCZOS))
        picture[y : y + height, x : x + width] = drawn
    return picture


@pytest.fixture
def head(astronaut):
    return np.ascontiguousarray(astronaut[:256, 96:352])


def test_the_astronaut_has_one_face_at_the_right_place(landmarker, astronaut):
    (face,) = landmarker.detect(astronaut)
    assert face.landmarks.shape == (478, 3)
    assert face.landmarks.dtype == np.float32
    np.testing.assert_allclose(face.landmarks[4, :2], [223, 127], atol=6)
    assert face.scores.shape == (len(ARKIT52),)
    assert face.scores.dtype == np.float32
    assert face.scores.min() >= 0
    assert face.scores.max() <= 1
    assert face.scores[ARKIT52.index("mouthSmileLeft")] > 0.5  # she smiles
    assert face.scores[ARKIT52.index("eyeBlinkLeft")] < 0.3


def test_the_same_picture_gives_the_same_numbers(landmarker, astronaut):
    first = landmarker.detect(astronaut)[0]
    landmarker.detect(np.ascontiguousarray(astronaut[::-1]))  # another picture in between changes nothing
    again = landmarker.detect(astronaut)[0]
    np.testing.assert_array_equal(first.landmarks, again.landmarks)
    np.testing.assert_array_equal(first.scores, again.scores)


def test_a_region_between_pixels_is_moved_to_whole_pixels(landmarker, astronaut):
    (exact,) = landmarker.detect(astronaut, CropBox((224.0, 128.0), 200.0))
    (moved,) = landmarker.detect(astronaut, CropBox((224.3, 127.8), 200.4))
    np.testing.assert_array_equal(exact.landmarks, moved.landmarks)


@pytest.mark.parametrize("side", [447, 640, 896, 1343])
def test_a_large_square_is_copied_or_reduced_by_a_whole_factor(landmarker, astronaut, side):
    """A square half as large shows the same face in the same place of the image."""
    large = np.asarray(Image.fromarray(astronaut).resize((2048, 2048), Image.Resampling.BICUBIC))
    middle = (860.0, 470.0)
    (face,) = landmarker.detect(large, CropBox(middle, side))
    (again,) = landmarker.detect(large, CropBox(middle, 447.0 + side / 2))
    assert np.abs(face.landmarks - again.landmarks)[:, :2].mean() < 0.01 * face.size


def test_several_faces_come_largest_first(landmarker, head):
    faces = landmarker.detect(collage(head, (60, 100, 400), (620, 60, 600)))
    assert len(faces) == 2
    assert faces[0].size > 1.3 * faces[1].size
    assert faces[0].centre[0] > 620


def test_a_region_gives_pixels_of_the_whole_picture(landmarker, astronaut):
    whole = landmarker.detect(astronaut)[0]
    inside = landmarker.detect(astronaut, CropBox((220.0, 130.0), 240.0))[0]
    assert np.linalg.norm(whole.landmarks[:, :2] - inside.landmarks[:, :2], axis=1).mean() < 2.0


def test_large_pictures_are_measured_in_their_own_pixels(landmarker, astronaut):
    large = np.asarray(Image.fromarray(astronaut).resize((2048, 2048), Image.Resampling.BICUBIC))
    small, big = landmarker.detect(astronaut)[0], landmarker.detect(large)[0]
    assert np.linalg.norm(big.landmarks[:, :2] / 4 - small.landmarks[:, :2], axis=1).mean() < 2.0


@pytest.mark.parametrize("width", [100, 200])
def test_a_search_finds_faces_too_small_for_the_detector(landmarker, head, width):
    picture = collage(head, (900, 380, width))
    assert landmarker.detect(picture) == []
    (face,) = landmarker.search(picture)
    assert np.abs(face.centre - [900 + 0.5 * width, 380 + 0.46 * width]).max() < 0.1 * width


def test_a_glance_finds_a_face_that_is_large_beside_the_short_side(landmarker, head):
    picture = collage(head, (900, 200, 300), size=(720, 1600))
    assert landmarker.detect(picture) == []
    (face,) = glance(landmarker, picture)
    assert np.abs(face.centre - [1050, 338]).max() < 30


def test_a_face_that_fills_the_picture_is_found(landmarker, astronaut):
    (face,) = landmarker.search(np.ascontiguousarray(astronaut[80:170, 180:270]))
    np.testing.assert_allclose(face.landmarks[4, :2], [43, 47], atol=6)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (16, 16), (40, 3000), (480, 640)])
def test_pictures_without_a_face_have_none(landmarker, size, rng):
    assert landmarker.search(np.full((*size, 3), 128, np.uint8)) == []
    assert landmarker.search(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) == []


@pytest.mark.parametrize("size", [(30000, 16), (16, 30000), (9000, 1)])
def test_a_slim_picture_is_searched_in_little_memory(landmarker, size):
    tracemalloc.start()
    assert landmarker.search(np.zeros((*size, 3), np.uint8)) == []
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize("size", [(480, 640), (3000, 4000), (4480, 6700), (8200, 12300), (100, 100000), (2000, 40000)])
def test_windows_are_few_however_large_the_picture(size):
    full, coarse = (sum(map(len, _search_regions(*size, coarse=coarse))) for coarse in (False, True))
    assert full < 900
    assert full + 3 * coarse < 1700 if max(size) > 10 * min(size) else full + 3 * coarse < 1050


@pytest.mark.parametrize("size", [(0, 0), (5, 0), (0, 5)])
def test_a_picture_without_pixels_is_refused(landmarker, size):
    empty = np.zeros((*size, 3), np.uint8)
    for search in (landmarker.search, landmarker.detect, Tracker(landmarker).track_image):
        with pytest.raises(ShapeError, match="an image must be uint8"):
            search(empty)
    with pytest.raises(ShapeError, match="an image must be uint8"):
        Tracker(landmarker).track_frames([empty] * 2)


def test_pictures_of_another_kind_are_refused(landmarker, astronaut):
    with pytest.raises(ShapeError):
        landmarker.detect(astronaut[..., 0])
    with pytest.raises(ShapeError):
        landmarker.detect(astronaut.astype(np.float32))


def test_a_closed_landmarker_says_so(astronaut):
    pytest.importorskip("mediapipe", exc_type=ImportError)
    with FaceLandmarker() as opened:
        assert opened.detect(astronaut)
    opened.close()
    with pytest.raises(Export3DError, match="closed"):
        opened.detect(astronaut)


def test_a_damaged_model_is_refused():
    pytest.importorskip("mediapipe", exc_type=ImportError)
    with pytest.raises(Export3DError, match="reinstall"):
        FaceLandmarker(model=b"not a model")


def test_missing_mediapipe_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(MissingExtra, match=r"pip install -c constraints.txt '\.\[face\]'"):
        FaceLandmarker()


def run(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)


TRACK = """
import sys, numpy
from PIL import Image
from export3d.face.landmarks import FaceLandmarker
landmarker = FaceLandmarker()
print(len(landmarker.detect(numpy.asarray(Image.open(sys.argv[1]).convert("RGB")))))
"""


@pytest.mark.slow
def test_nothing_is_printed_even_when_nobody_closes(landmarker, astronaut_path):
    done = run(TRACK, str(astronaut_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


@pytest.mark.slow
def test_faces_are_found_where_opencv_and_matplotlib_cannot_be_loaded(landmarker, astronaut_path):
    """As on a machine without libGL: importing cv2 raises ImportError."""
    blocked = """
import sys
class NoOpenCV:
    def find_spec(self, name, path=None, target=None):
        if name in ("cv2", "matplotlib"):
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
sys.meta_path.insert(0, NoOpenCV())
"""
    done = run(blocked + TRACK + "print('cv2' in sys.modules)", str(astronaut_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\nFalse\n", "")


def test_importing_the_face_room_loads_neither_mediapipe_nor_opencv_nor_torch():
    rooms = ["landmarks", "mesh", "pose", "crop", "smooth", "tracker"]
    imports = "; ".join(f"import export3d.face.{room}" for room in rooms)
    done = run(f"import sys; {imports}; print([m for m in ('mediapipe', 'cv2', 'torch', 'av') if m in sys.modules])")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.timeout(60)
def test_a_landmarker_that_nobody_closed_may_be_collected_inside_a_thread_pool() -> None:
    """The collector runs anywhere, also where a pool holds its lock; MediaPipe's close waits for that lock."""
    landmarker = FaceLandmarker()
    with pool._global_shutdown_lock:
        landmarker._finalizer()  # as the collector does
    with pytest.raises(Export3DError, match="closed"):
        landmarker.detect(np.zeros((64, 64, 3), np.uint8))
