"""One image sheet: the same frames rendered by every row of Table 3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.ablation.rows import PAPER, Row
from export3d.animate.export import write_sheet
from export3d.camera import head_angles
from export3d.data.frames import decode
from export3d.data.shards import Record, read_shards
from export3d.evaluation.protocols.cross import asked_motion
from export3d.evaluation.protocols.driven import FPS, most_frontal
from export3d.evaluation.protocols.pairs import Pair
from export3d.evaluation.protocols.runner import origin_of
from export3d.evaluation.reports.figures import publishable
from export3d.image import resize, to_tensor, to_uint8
from export3d.motion.motion import Motion
from export3d.pretrained import load_pretrained

Picture = NDArray[np.uint8]

_SHEET_PEOPLE = 4
_SHEET_PX = 128
_ANGLE_SCALE_DEG = 15.0


@dataclass(frozen=True, eq=False)
class _Shot:
    """A picture to be made: one frame of a source, asked to look as one frame of a driver does."""

    source: Record
    frame: int
    driver: Record
    row: int
    asked: Motion
    movement: float

    @property
    def credit(self) -> str:
        told = [f"{r.key} ({origin_of(r.info)}, {r.info.get('terms', '')})" for r in (self.source, self.driver)]
        return told[0] if self.source is self.driver else f"{told[0]} driven by {told[1]}"


def _shots(split: Path, pairs: Iterable[Pair]) -> list[_Shot]:
    """What the sheet shows: publishable people alone; of them those that are moved most, first by themselves, then by
    others, one a driving person. It does not depend on how well anything came out."""
    records = {
        record.key: record
        for record in read_shards(split)
        if record.found.any() and publishable(str(record.info.get("terms")), origin_of(record.info))
    }
    own = [Pair(key, key) for key, record in records.items() if record.kind == "video"]
    chosen: list[_Shot] = []
    for group in (own, pairs):
        best: dict[str, _Shot] = {}
        for pair in group:
            if pair.source in records and pair.driver in records:
                shot = _shot(records[pair.source], records[pair.driver])
                person = str(shot.driver.info.get("person", pair.driver))
                if person not in best or best[person].movement < shot.movement:
                    best[person] = shot
        chosen += sorted(best.values(), key=lambda shot: -shot.movement)[:_SHEET_PEOPLE]
    return chosen


def _shot(source: Record, driver: Record) -> _Shot:
    """The driver's found frame that lies farthest from the source, asked for as the protocols do (absolute motion)."""
    frame = most_frontal(source.camera, source.found)
    camera, expression = source.camera[frame], source.expression[frame]
    asked = Motion(driver.expression, driver.camera, FPS)
    if source is not driver:
        asked = asked_motion(asked, camera, expression, "absolute")
    away = np.abs(asked.angles_deg - head_angles(camera)).sum(axis=-1) / _ANGLE_SCALE_DEG
    away = np.where(driver.found, away + np.abs(asked.expression - expression).sum(axis=-1), -np.inf)
    at = int(away.argmax())
    return _Shot(source, frame, driver, at, asked, float(away[at]))


@torch.inference_mode()
def draw_sheet(
    path: Path, split: Path, pairs: Iterable[Pair], trained: Mapping[Row, Path], device: torch.device
) -> tuple[str, ...]:
    """Write source, driving frame and every variant's, a row for each shot; what each row shows."""
    shots = _shots(split, pairs)
    if not shots:
        return ()
    rows: list[list[Picture]] = [[] for _ in shots]
    for weights in trained.values():
        model = load_pretrained(weights).to(device)
        for shot, pictures in zip(shots, rows):
            size = model.config.image_size
            source = np.moveaxis(decode(shot.source, size)[shot.frame], 0, -1)
            if not pictures:
                pictures += [_enlarged(source), _enlarged(np.moveaxis(decode(shot.driver, size)[shot.row], 0, -1))]
            motions = [
                ((shot.source.camera, shot.source.expression, shot.source.landmarks), shot.frame),
                ((shot.asked.camera, shot.asked.expression), shot.row),
            ]
            own, (asked_camera, asked) = (
                tuple(torch.from_numpy(np.array(values[row], np.float32))[None].to(device) for values in known)
                for known, row in motions
            )
            features = model.encode(to_tensor(source)[None].to(device), *own)
            pictures.append(_enlarged(to_uint8(model.frame(model.planes(features, asked), asked_camera))[0]))
    write_sheet(path, rows, [["source", "driving", *(PAPER[row] for row in trained)]] * len(rows))
    return tuple(shot.credit for shot in shots)


def _enlarged(picture: Picture) -> Picture:
    """(R, R, 3), large enough to be looked at."""
    return to_uint8(resize(to_tensor(np.ascontiguousarray(picture)), max(len(picture), _SHEET_PX)))
