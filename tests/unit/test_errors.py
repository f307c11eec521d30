import numpy as np
import pytest

from export3d import errors
from export3d.errors import Export3DError, InputError, MissingExtra, ShapeError, check_shape


def test_every_failure_is_caught_by_the_base_class() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert len(classes) >= 12
    assert all(issubclass(c, Export3DError) for c in classes)


@pytest.mark.parametrize("name", ["BadImage", "BadVideo", "BadMotionFile", "NoFaceFound"])
def test_what_the_user_hands_us_is_an_input_error(name: str) -> None:
    assert issubclass(getattr(errors, name), InputError)


def test_outputs_and_checkpoints_are_not_input_errors() -> None:
    assert not issubclass(errors.OutputError, InputError)
    assert not issubclass(errors.CheckpointError, InputError)


def test_programming_mistakes_are_also_value_errors() -> None:
    assert issubclass(errors.ShapeError, ValueError)
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.MissingExtra, ImportError)


def test_a_missing_extra_says_what_to_install() -> None:
    error = MissingExtra("face", "mediapipe")
    assert error.extra == "face"
    assert "pip install -c constraints.txt '.[face]'" in str(error)


def test_a_shape_that_fits_passes() -> None:
    check_shape(np.zeros((4, 3, 8, 8)), "B 3 H H")
    check_shape(np.zeros((2, 0)), "T N")


@pytest.mark.parametrize(
    ("shape", "pattern"),
    [((3, 8, 8), "B 3 H W"), ((1, 4, 8, 8), "B 3 H W"), ((1, 3, 8, 9), "B 3 H H"), ((5,), ""), ((), "N")],
)
def test_a_shape_that_does_not_fit_is_named_with_what_was_expected(shape: tuple[int, ...], pattern: str) -> None:
    with pytest.raises(ShapeError, match="portrait must have shape") as caught:
        check_shape(np.zeros(shape), pattern, "portrait")
    assert str(shape) in str(caught.value)
