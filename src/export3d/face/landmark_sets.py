"""Named sets among MediaPipe's 478 face landmarks.

Right and left are the person's own: in the image of a frontal face, the right eye is on the left.
"""

from __future__ import annotations

NOSE_TIP = 4
NOSE_BASE = 2
FOREHEAD = 10
CHIN = 152
CHEEKS = (117, 346)

EYE_CORNERS = ((33, 133), (263, 362))
"""Outer and inner corner of the right eye, then of the left eye."""
UPPER_LIDS = ((246, 161, 160, 159, 158, 157, 173), (466, 388, 387, 386, 385, 384, 398))
LOWER_LIDS = ((7, 163, 144, 145, 153, 154, 155), (249, 390, 373, 374, 380, 381, 382))
"""Eyelids of the right and the left eye, each from the outer corner inward."""
EYE_LOOPS = tuple(
    (outer, *upper, inner, *reversed(lower))
    for (outer, inner), upper, lower in zip(EYE_CORNERS, UPPER_LIDS, LOWER_LIDS)
)
"""The landmarks around the right and the left eye, each as a polygon from the outer corner."""
AROUND_EYES = (
    (130, 247, 30, 29, 27, 28, 56, 190, 243, 112, 26, 22, 23, 24, 110, 25),
    (359, 467, 260, 259, 257, 258, 286, 414, 463, 341, 256, 252, 253, 254, 339, 255),
)
"""The next landmarks outward from each of `EYE_LOOPS`; above the eye, in the crease of the lid."""
BROWS = (105, 66, 107, 52, 65, 55, 334, 296, 336, 282, 295, 285)
"""The inner three fifths of the brows: upper, then lower edge of the right one, each inward; likewise the left one."""
EYELIDS = tuple(n for loops in (EYE_CORNERS, UPPER_LIDS, LOWER_LIDS) for loop in loops for n in loop)
LID_MIDDLES = {"Right": (159, 145), "Left": (386, 374)}
"""Middle of the upper and the lower eyelid of each eye."""
IRISES = (range(468, 473), range(473, 478))
"""Landmarks of the right and the left iris, the centre first."""
EYES = (33, 133, 159, 145, 263, 362, 386, 374)
"""Corners and eyelid middles of both eyes."""

MOUTH_CORNERS = (61, 291)
"""The right and the left corner of the mouth."""
INNER_LIP_MIDDLES = (13, 14)
"""Inner middle of the upper and the lower lip."""
MOUTH = (61, 291, 0, 17, 13, 14)
"""Corners of the mouth, then the outer and inner middles of the lips."""
INNER_LIPS = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
"""The landmarks around the opening of the mouth, as a polygon."""
LIPS = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146, *INNER_LIPS)
"""The outer contour of the lips, then the inner one."""
FACE_OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
"""The landmarks around the face, as a polygon."""

IBUG68: tuple[int, ...] = (
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
    *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301),
    *(168, 197, 5, 4, 75, 97, 2, 326, 305),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),
    *(78, 82, 13, 312, 308, 317, 14, 87),
)
"""The landmark at each of the 68 points of iBUG's scheme (300-W): jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, outer
lips 48-59, inner lips 60-67; each from the left of the image of a frontal face."""
