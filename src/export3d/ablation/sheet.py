"""The contact sheet of an ablation: the same frames rendered by every row of Table 3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export3d.ablation.rows import PAPER, Row
from export3d.animate.export import write_sheet
from export3d.data.decoding import decode
from export3d.data.shards import Record, read_shards
from export3d.evaluation.protocols.cross import asked_motion
from export3d.evaluation.protocols.driven import distance_from, most_frontal
from export3d.evaluation.protocols.provenance import origin_of
from export3d.evaluation.reports.cross import Pair
from export3d.evaluation.reports.figures import publishable
from export3d.image import resize, to_tensor, to_uint8
from export3d.motion.motion import Motion
from export3d.photo.matte import crop_mattes
from export3d.pretrained import load_pretrained

Picture = NDArray[np.uint8]

_SHEET_PEOPLE = 4
_SHEET_PX = 128


@dataclass(frozen=True, eq=False)
class _Shot:
    """An image to render: one frame of a source with the motion of one frame of a driver."""

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
    """The rows of the sheet: the publishable people who are moved most, first by themselves, then by others, one row
    per driving person. The choice does not depend on the results."""
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
    """The driver's found frame farthest from the source, with the motion that the protocols request (absolute)."""
    frame = most_frontal(source.camera, source.found)
    camera, expression = source.camera[frame], source.expression[frame]
    asked = driver.motion("arkit52")
    if source is not driver:
        asked = asked_motion(asked, camera, expression, "absolute")
    away = np.where(driver.found, distance_from(asked, camera, expression), -np.inf)
    at = int(away.argmax())
    return _Shot(source, frame, driver, at, asked, float(away[at]))


@torch.inference_mode()
def write_ablation_sheet(
    path: Path, split: Path, pairs: Iterable[Pair], trained: Mapping[Row, Path], device: torch.device
) -> tuple[str, ...]:
    """Write source, driving frame and every variant's image, a row per shot.

    Returns:
        A line per row: who is shown. Empty, and no file, if nobody may be shown.
    """
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
            (camera, expression, landmarks), (asked_camera, asked) = (
                tuple(torch.from_numpy(np.array(values[row], np.float32))[None].to(device) for values in known)
                for known, row in motions
            )
            image = to_tensor(source)[None].to(device)
            features = model.encode(image, camera, expression, landmarks, crop_mattes(model, image))
            pictures.append(_enlarged(to_uint8(model.frame(model.planes(features, asked), asked_camera))[0]))
    write_sheet(path, rows, [["source", "driving", *(PAPER[row] for row in trained)]] * len(rows))
    return tuple(shot.credit for shot in shots)


def _enlarged(picture: Picture) -> Picture:
    """The image (R, R, 3), at least 128 pixels a side."""
    return to_uint8(resize(to_tensor(np.ascontiguousarray(picture)), max(len(picture), _SHEET_PX)))
