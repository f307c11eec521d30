import numpy as np
import pytest

from export3d.motion.motion import Motion
from tests.random_motion import random_motion


@pytest.fixture
def some(rng: np.random.Generator) -> Motion:
    return random_motion(rng)
