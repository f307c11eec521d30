"""A mark in perspective is rectified and read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from export3d.provenance.watermark import warped
from export3d.provenance.watermark.detect import find_watermark
from export3d.provenance.watermark.embed import Watermark

CORNERS = np.array([(5.0, -4.0), (-6.0, 3.0), (4.0, 6.0), (-3.0, -5.0)])
"""Displacements of up to 2.3 % of the side, clockwise from the top left."""


def test_rectifying_undoes_displacements_of_the_corners():
    """A square seen from the side: its right edge is 20 pixels shorter and becomes as long as the left one."""
    image = np.tile(np.linspace(0, 1, 200, dtype=np.float32)[:, None], (1, 300))
    there = warped._rectified(image, np.array([(0.0, 0.0), (0.0, 10.0), (0.0, -10.0), (0.0, 0.0)]))
    assert there[100, 150] == pytest.approx(0.5, abs=0.01)
    assert there[[0, 199], 299] == pytest.approx([10 / 199, 189 / 199], abs=0.005)
    assert there[[0, 199], 0] == pytest.approx([0, 1], abs=0.005)


def test_corners_follow_the_windows_slopes():
    """Pure magnification by 8 pixels at the outer windows' centres is 10.5 at the corners, of four windows in a row."""
    corners = warped._corners(np.array([(8, 0, 0), (0, 8, 0)]), 4)
    assert corners.tolist() == [[-10.5, -10.5], [10.5, -10.5], [10.5, 10.5], [-10.5, 10.5]]


@pytest.mark.slow
def test_a_mark_in_perspective_is_read(astronaut):
    face = np.asarray(Image.fromarray(astronaut[:320, 60:380]).resize((256, 256), Image.Resampling.BICUBIC))
    marked = Image.fromarray(Watermark(0xFACE0FF0).apply(face))
    quad = (np.array([(0, 0), (0, 256), (256, 256), (256, 0)]) + CORNERS[[0, 3, 2, 1]]).ravel().tolist()
    seen = np.asarray(marked.transform((256, 256), Image.Transform.QUAD, quad, Image.Resampling.BICUBIC))
    finding = find_watermark([seen, seen])
    assert finding.payload == 0xFACE0FF0
    assert (finding.mirrored, finding.scale) == (False, 1.0)
