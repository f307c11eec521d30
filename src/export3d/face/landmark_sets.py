"""Named sets among MediaPipe's 478 face landmarks."""

from __future__ import annotations

IRISES = (range(468, 473), range(473, 478))
"""Landmarks of the person's right and left iris."""


INNER_LIPS = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
"""The landmarks around the mouth's opening, as a polygon."""
FACE_OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
"""The landmarks around the face, as a polygon."""


UPPER_LIDS = ((246, 161, 160, 159, 158, 157, 173), (466, 388, 387, 386, 385, 384, 398))
LOWER_LIDS = ((7, 163, 144, 145, 153, 154, 155), (249, 390, 373, 374, 380, 381, 382))
EYE_CORNERS = ((33, 133), (263, 362))
"""Landmarks of the person's right and left eye, each from its outer corner inward."""


EYES = (33, 133, 159, 145, 263, 362, 386, 374)
"""Corners and lid middles of both eyes among the 478 landmarks."""
MOUTH = (61, 291, 0, 17, 13, 14)
"""Corners, outer and inner middles of the lips among the 478 landmarks."""
LIPS = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146, *INNER_LIPS)
EYELIDS = tuple(n for loops in (EYE_CORNERS, UPPER_LIDS, LOWER_LIDS) for loop in loops for n in loop)
