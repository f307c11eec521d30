"""Follows every person of a clip while its frames are read once, and tells afterwards who is seen largest and longest.

A person is followed from frame to frame. Whoever is lost for half a second is given up; who appears later begins as
another person. `joined` puts the pieces together that can be one person: those that are not in view together.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

from export3d.face.crop import CropBox, upright
from export3d.face.landmark_sets import CHIN, FOREHEAD
from export3d.face.landmarks import (
    LARGEST_SPREAD,
    LONG_SIDE,
    MAX_FACES,
    Face,
    Landmarker,
    alike,
    distinct,
    glance,
    spread,
)
from export3d.face.shoulders import UNKNOWN, Mask, Shoulders

SEARCH_EVERY = 12
"""Frames between two searches of the whole frame, and frames for which a lost face is looked for where it was."""
_GLANCE_EVERY = 24
"""Frames between two looks for other people, where the followed ones are searched only around where they were."""
_REFUSED_FOR = 6
"""Frames for which a detection that was not confirmed is not tried again."""
_JUMP = 1.0
_JUMP_PER_LOST_FRAME = 0.25
_REGION_DRIFT = 0.15
_REGION_SCALE = 1.25
_COMMON = 0.1
"""Share of a piece's frames that it may have in common with the person it is joined to."""
_ZOOM = 3.0
"""Largest ratio of the mean face sizes of two pieces of one person."""
_LYING_DEG = 60.0
"""Roll of a head beyond which the whole image is taken to lie on its side or to stand on its head."""
_CLEARLY_UPRIGHT = 0.003
"""Largest `spread` of a face that need not be compared with the image turned the other ways."""
_TURNED_SEARCHES = 10
"""Searches of a clip after which only every tenth also looks for faces that are not upright."""
_SEARCHED_CUTS = 4
"""Searches at cuts that a clip may have beyond one per `SEARCH_EVERY` frames, as long as nobody is followed."""
_CUT = 20.0
"""Mean absolute difference of two frames, of 255, that makes a search worthwhile at once."""
_SAME_SHOT = 0.25
"""Faces that move by less at a cut are filmed on: the camera shakes, or a light goes on. In sizes of the face."""
_SETTLED = _GLANCE_EVERY
"""Repetitions of a frame after which looking again finds nothing new."""


class Person:
    """What is kept of one person: the frames that show the face, and its landmarks and scores in them.

    They are stored in growing buffers, not in one array per face: small arrays that stay allocated would fragment the
    memory of freed frames, and memory use would grow.

    Attributes:
        frames: numbers of the frames with the face, ascending.
        weight: sum of the face's sizes over these frames, pixels.
    """

    def __init__(self) -> None:
        self.frames: list[int] = []
        self.weight = 0.0
        self._landmarks = bytearray()
        self._scores = bytearray()
        self._shoulders = bytearray()

    def append(self, frame: int, face: Face, shoulders: NDArray[np.float32] = UNKNOWN) -> None:
        """Add the face of a later frame, and its shoulders (6,), see `Shoulders`."""
        self.frames.append(frame)
        self.weight += face.size
        self._landmarks += face.landmarks[:, :2].astype(np.float32).tobytes()
        self._scores += face.scores.astype(np.float32).tobytes()
        self._shoulders += shoulders.tobytes()

    def forget(self) -> None:
        """Keep the last frame only."""
        last = (bytearray(kept[-1].tobytes()) for kept in (self.landmarks(), self.scores(), self.shoulders()))
        self.frames, (self._landmarks, self._scores, self._shoulders) = self.frames[-1:], last

    def landmarks(self, rows: int | None = None) -> NDArray[np.float32]:
        """(rows, 478, 2), pixels of the frames: first the N frames with the face, then unused space; by default N."""
        count = len(self.frames)
        missing = (count if rows is None else rows) - count
        if missing:
            self._landmarks += bytes(missing * (len(self._landmarks) // count))
        return np.frombuffer(self._landmarks, dtype=np.float32).reshape(count + missing, -1, 2)

    def scores(self) -> NDArray[np.float32]:
        """(N, 52)."""
        return np.frombuffer(self._scores, dtype=np.float32).reshape(len(self.frames), -1)

    def shoulders(self) -> NDArray[np.float32]:
        """(N, 6), see `Shoulders`."""
        return np.frombuffer(self._shoulders, dtype=np.float32).reshape(-1, len(UNKNOWN))

    def face(self, row: int) -> Face:
        """The face in the frame `frames[row]`."""
        return Face(self.landmarks()[row], self.scores()[row])


class _Pieces:
    """Pieces of one person, which become one `Person` when all are known: copying them for each would be quadratic."""

    def __init__(self, first: Person) -> None:
        self._first = first
        self._weight = first.weight
        self._frames = list(first.frames)
        self._places = {frame: (first, row) for row, frame in enumerate(first.frames)}

    def add(self, other: Person) -> None:
        """Add another piece of the same person, except for the frames that are there already."""
        new = [row for row, frame in enumerate(other.frames) if frame not in self._places]
        for row in new:
            insort(self._frames, other.frames[row])
            self._places[other.frames[row]] = (other, row)
        self._weight += other.weight * (len(new) / len(other.frames))

    def person(self) -> Person:
        """One person of all the pieces; the first if there are no others."""
        if len(self._frames) == len(self._first.frames):
            return self._first
        whole = Person()
        whole.frames, whole.weight = self._frames, self._weight
        for piece, row in map(self._places.__getitem__, self._frames):
            whole._landmarks += piece.landmarks()[row].tobytes()
            whole._scores += piece.scores()[row].tobytes()
            whole._shoulders += piece.shoulders()[row].tobytes()
        return whole

    def continued_by(self, other: Person) -> bool:
        """Whether another piece can be of this person: not in view together, sizes alike, and within reach.

        Without a means to recognise faces, whoever stays for half a second while this person is away is taken for it:
        most clips with cuts show one person.
        """
        sizes = sorted((self._weight / len(self._frames), other.weight / len(other.frames)))
        common = sum(frame in self._places for frame in other.frames) / len(other.frames)
        if common > _COMMON or sizes[1] > _ZOOM * sizes[0]:
            return False
        return len(other.frames) >= SEARCH_EVERY or self._reaches(other)

    def _reaches(self, other: Person) -> bool:
        """Whether the face can have moved to where the other piece begins or ends in the time in between."""
        for row in (0, -1):
            frame = other.frames[row]
            at = bisect_left(self._frames, frame)
            nearest = min(self._frames[max(at - 1, 0) : at + 1], key=lambda mine: abs(mine - frame))
            piece, mine_row = self._places[nearest]
            mine, theirs = piece.face(mine_row), other.face(row)
            if _distance(mine, theirs) < (_JUMP + _JUMP_PER_LOST_FRAME * abs(nearest - frame)) * mine.size:
                return True
        return False


def joined(people: list[Person]) -> list[Person]:
    """The people of a clip, each with all its pieces, heaviest first; takes over the given ones.

    Starting with the heaviest piece, every lighter one that can be of the same person is joined to it.
    """
    left = sorted(people, key=lambda person: -person.weight)
    out = []
    while left:
        pieces, rest, left = _Pieces(left[0]), left[1:], []
        for other in rest:
            if pieces.continued_by(other):
                pieces.add(other)
            else:
                left.append(other)
        out.append(pieces.person())
    return sorted(out, key=lambda person: -person.weight)


class Crowd:
    """The people of the frames seen so far.

    Attributes:
        people: everybody seen, each from the first frame to that in which the face was lost.
        faces: the faces of the last frame, of who was seen longest first.
        present: the people whose faces these are.
        quarter_turns: turns by 90 degrees counter-clockwise that make the frames upright (see `upright`); landmarks
            are in pixels of the turned frames. Decided at the first face.
        several: number of frames with more than one face.
        unconfirmed: whether something like a face was seen that is none.

    Args:
        landmarker: finds faces.
        mask: tells where people are (`PersonSegmenter.mask`), so that their shoulders are followed too; None: they are
            not.
    """

    def __init__(self, landmarker: Landmarker, mask: Mask | None = None) -> None:
        self.people: list[Person] = []
        self.faces: list[Face] = []
        self.present: list[Person] = []
        self.quarter_turns = 0
        self.several = 0
        self.unconfirmed = False
        self._landmarker = landmarker
        self._mask = mask
        self._frame = -1
        self._followers: list[_Follower] = []
        self._refused: list[tuple[int, Face]] = []
        self._idle = 0
        self._searches = 0
        self._grid = np.zeros(0, np.int16)
        self._still: NDArray[np.uint8] | None = None
        self._repeated = 0

    def step(self, image: NDArray[np.uint8]) -> None:
        """Look for everybody in the next frame.

        In a picture that stands, as in a clip of few frames, nobody is looked for after a second of it.
        """
        self._frame += 1
        before, cut = self._grid, self._is_cut(image)
        if self._stands(image, np.array_equal(before, self._grid)):
            for person, face in zip(self.present, self.faces):
                person.append(self._frame, face, person.shoulders()[-1].copy())
            self.several += len(self.faces) > 1
            return
        self._refused = [(frame, face) for frame, face in self._refused if self._frame - frame < _REFUSED_FOR]
        look = _Look(self._landmarker, upright(image, self.quarter_turns), [face for _, face in self._refused])
        self.faces, self.present = [], []
        self._follow(look, cut)
        self._welcome(look, cut)
        self.several += len(self.faces) > 1
        self._refused += [(self._frame, face) for face in look.refused[len(self._refused) :]]
        self.unconfirmed |= bool(self._refused)

    def forget(self) -> None:
        """Keep of the people only those who are followed, and their last frame: for clips without an end."""
        self.people = [follower.person for follower in self._followers] or self.people[-1:]
        for person in self.people:
            person.forget()

    def _follow(self, look: _Look, cut: bool) -> None:
        """Find those who were there before; who was just seen goes first, and of them who was seen most.

        Whoever is lost at a cut is given up at once.
        """
        for follower in sorted(self._followers, key=lambda one: (one.lost > 0, -one.person.weight)):
            others = [one.last for one in self._followers if one is not follower and not one.lost]
            before, face = follower.last, follower.step(look, others, cut)
            if face is not None and self._is_new(face):
                if cut and _distance(before, face) > _SAME_SHOT * face.size:
                    follower.shoulders = None
                self._append(follower, look)
            else:
                follower.lose()
        self._followers = [one for one in self._followers if one.lost <= (0 if cut else SEARCH_EVERY)]

    def _welcome(self, look: _Look, cut: bool) -> None:
        """Begin to follow those who are not followed yet."""
        faces: list[Face] = []
        if self._followers:
            self._idle = 0
            if look.has_whole or self._frame % _GLANCE_EVERY == 0:
                seen = look.whole if look.has_whole else glance(look.landmarker, look.image)
                faces = [face for face in seen if self._is_new(face) and look.confirms(face)]
        else:
            often = self._searches > self._frame // SEARCH_EVERY + _SEARCHED_CUTS  # as flashes would make it
            search = self._idle % SEARCH_EVERY == 0 or (cut and not often)
            self._idle += 1
            self._searches += search
            faces = look.all(search)
            if faces and not self.people:
                look, faces = self._upright(look, faces)
            elif search and not self.people:
                look, faces = self._turned(look)
        for face in faces[: MAX_FACES - len(self.faces)]:
            follower = _Follower(look, face)
            if self._is_new(follower.last):
                self._followers.append(follower)
                self.people.append(follower.person)
                self._append(follower, look)

    def _append(self, follower: _Follower, look: _Look) -> None:
        """Keep the face that a follower has just found."""
        face, known = follower.last, UNKNOWN
        if self._mask is not None:
            follower.shoulders = follower.shoulders or Shoulders(self._mask, self._frame)
            known = follower.shoulders.step(look.image, face.landmarks)
        follower.person.append(self._frame, face, known)
        self.faces.append(face)
        self.present.append(follower.person)

    def _upright(self, look: _Look, faces: list[Face]) -> tuple[_Look, list[Face]]:
        """The first faces, in the frame turned upright: the detector takes some that lie for upright ones.

        Of all directions in which the same place shows an upright face, that of the least `spread` counts.
        """
        first = faces[0]
        least = float("inf") if lies(first) else look.spread(first)
        if least <= _CLEARLY_UPRIGHT:
            return look, faces
        best: tuple[int, _Look, Face] | None = None
        for turns in (2, 1, 3):
            turned = look.turned(turns)
            x, y = _turned_point(float(first.centre[0]), float(first.centre[1]), look.image, turns)
            for face in look.landmarker.detect(turned.image, CropBox((x, y), first.region().side)):
                if not lies(face) and turned.confirms(face) and turned.spread(face) < least:
                    least, best = turned.spread(face), (turns, turned, face)
        if best is None:
            return look, [] if lies(first) else faces
        self.quarter_turns, turned, face = best
        return turned, [other for other in turned.all(search=False) if not lies(other)] or [face]

    def _turned(self, look: _Look) -> tuple[_Look, list[Face]]:
        """A frame without an upright face: the frame turned by 180 or 90 degrees, if that shows one."""
        if self._searches > _TURNED_SEARCHES and self._searches % _TURNED_SEARCHES:
            return look, []
        for turns in (2, 1, 3):
            turned = look.turned(turns)
            faces = [face for face in turned.all(search=True, coarse=True) if not lies(face)]
            if faces:
                self.quarter_turns = turns
                return turned, faces
        return look, []

    def _is_cut(self, image: NDArray[np.uint8]) -> bool:
        """Whether the frame differs greatly from the one before, on a grid of at most 32 by 32 pixels."""
        height, width = image.shape[:2]
        grid = np.array(np.asarray(image)[:: max(height // 32, 1), :: max(width // 32, 1)], np.int16)
        before, self._grid = self._grid, grid
        return before.shape != grid.shape or bool(np.abs(grid - before).mean() > _CUT)

    def _stands(self, image: NDArray[np.uint8], perhaps: bool) -> bool:
        """Whether the frame repeats one that has settled, pixel by pixel; only if it does `perhaps`, it is compared."""
        if perhaps and self._still is not None and np.array_equal(image, self._still):
            self._repeated += 1
        else:
            self._still, self._repeated = np.array(image) if perhaps else None, 0
        return self._repeated > _SETTLED

    def _is_new(self, face: Face) -> bool:
        return len(distinct([face, *self.faces])) > len(self.faces)


class _Look:
    """One frame; detections in the whole frame are made once, when they are first needed."""

    def __init__(self, landmarker: Landmarker, image: NDArray[np.uint8], refused: list[Face]) -> None:
        self.landmarker = landmarker
        self.image = image
        self.refused = refused
        self._whole: list[Face] | None = None
        self._spreads: list[tuple[Face, float]] = []

    def turned(self, turns: int) -> _Look:
        """The frame turned by so many times 90 degrees counter-clockwise."""
        return _Look(self.landmarker, upright(self.image, turns), [])

    @property
    def has_whole(self) -> bool:
        return self._whole is not None

    @property
    def whole(self) -> list[Face]:
        """All detections in the whole frame, largest first."""
        if self._whole is None:
            self._whole = self.landmarker.detect(self.image)
        return self._whole

    def all(self, search: bool, coarse: bool = False) -> list[Face]:
        """The confirmed faces of the frame; if none is detected, those that a search finds."""
        faces = [face for face in self.whole if self.confirms(face)]
        return self.landmarker.search(self.image, coarse) if search and not faces else faces

    def confirms(self, face: Face) -> bool:
        """See `landmarks.confirmed`; what was refused a moment ago is not tried again."""
        if any(alike(face, other) for other in self.refused):
            return False
        if self.spread(face) <= LARGEST_SPREAD:
            return True
        self.refused.append(face)
        return False

    def spread(self, face: Face) -> float:
        """See `landmarks.spread`; measured once per face."""
        for known, value in self._spreads:
            if known is face:
                return value
        self._spreads.append((face, spread(self.landmarker, self.image, face)))
        return self._spreads[-1][1]


class _Follower:
    """Finds one person in every frame, from the first face on."""

    def __init__(self, look: _Look, face: Face) -> None:
        self.person = Person()
        self.shoulders: Shoulders | None = None
        self.lost = 0
        self._region: CropBox | None = None
        found = any(face is other for other in look.whole)
        self.last = face if found and max(look.image.shape[:2]) <= LONG_SIDE else self._closer(look, face)

    def step(self, look: _Look, others: list[Face], cut: bool) -> Face | None:
        """The face in the next frame, if it is seen; `others` are the faces of other people, here or a frame before.

        A face that jumped, or one after a cut, must be confirmed.
        """
        face = self._look(look, others)
        if face is None or not ((alike(face, self.last) and not cut) or look.confirms(face)):
            return None
        self.last, self.lost = face, 0
        self._keep_region(face)
        return face

    def lose(self) -> None:
        """The face was not seen in this frame."""
        self._region = None
        self.lost += 1

    def _look(self, look: _Look, others: list[Face]) -> Face | None:
        """Detect the face, trying slower methods only when the faster ones fail.

        If the image is large, or plain detection finds nothing, the following frames are searched only in a square
        around the face, until the face is lost there. The square does not move while the face stays near its centre:
        a still image then gives the same landmarks every time.
        """
        if self._region is not None:
            face = self._choose(look.landmarker.detect(look.image, self._region), others)
            if face is not None:
                return face
            self._region = None
        face = self._choose(look.whole, others)
        if face is not None and max(look.image.shape[:2]) <= LONG_SIDE:
            return face
        if not look.whole:
            face = self._choose(look.landmarker.detect(look.image, self.last.region()), others)
        return None if face is None else self._closer(look, face)

    def _closer(self, look: _Look, face: Face) -> Face:
        """The same face, detected in the square that the following frames are searched in."""
        region = face.region()
        near = look.landmarker.detect(look.image, region)
        if not near:
            return face
        self._region = region
        return min(near, key=lambda other: _distance(other, face))

    def _choose(self, faces: list[Face], others: list[Face]) -> Face | None:
        """The detection nearest to the last one, within reach and not nearer to another person."""
        last = self.last
        away = {_distance(face, last): face for face in faces}
        if not away or min(away) >= last.size * (_JUMP + _JUMP_PER_LOST_FRAME * self.lost):
            return None
        nearest = away[min(away)]
        return nearest if all(_distance(nearest, other) > min(away) for other in others) else None

    def _keep_region(self, face: Face) -> None:
        if self._region is None:
            return
        wanted = face.region()
        drift = np.linalg.norm(np.subtract(wanted.centre, self._region.centre)) / self._region.side
        scale = wanted.side / self._region.side
        if drift > _REGION_DRIFT or not 1 / _REGION_SCALE < scale < _REGION_SCALE:
            self._region = wanted


def roll_deg(face: Face) -> float:
    """How far the head is turned clockwise in the image, -180 to 180 degrees."""
    x, y = face.landmarks[CHIN, :2] - face.landmarks[FOREHEAD, :2]
    return float(np.degrees(np.arctan2(-x, y)))


def lies(face: Face) -> bool:
    """Whether the head lies on its side or stands on its head."""
    return abs(roll_deg(face)) > _LYING_DEG


def _turned_point(x: float, y: float, image: NDArray[np.uint8], turns: int) -> tuple[float, float]:
    """Where a point of an image lies after so many turns by 90 degrees counter-clockwise."""
    height, width = image.shape[:2]
    return ((x, y), (y, width - x), (width - x, height - y), (height - y, x))[turns]


def _distance(a: Face, b: Face) -> float:
    return float(np.linalg.norm(a.centre - b.centre))
