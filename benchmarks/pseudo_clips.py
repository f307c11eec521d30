"""How much of what pseudo-clips ask for the tracker sees: python benchmarks/pseudo_clips.py SPLIT

For each score, and for the head's angles: correlation and slope of the tracked change (against the clip's first frame,
the portrait itself) on the change that was asked for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from export3d.camera import head_angles
from export3d.data.pseudo_clips import BANK_NAME
from export3d.data.shards import read_index, read_shards
from export3d.motion.arkit import ARKIT52

SCORES = (
    *("jawOpen", "mouthSmileLeft", "eyeBlinkLeft", "mouthPucker", "mouthUpperUpLeft", "browOuterUpLeft"),
    *("browInnerUp", "browDownLeft", "mouthLowerDownLeft"),
)


def main(split: Path) -> None:
    """Print the table."""
    bank = {line["number"]: np.array(line["change"]) for line in json.loads((split / BANK_NAME).read_text())["changes"]}
    asked, shown, turns, turned = [], [], [], []
    records = [record for record in read_shards(split) if record.info["bank"][0] == -1]
    for record in records:
        angles, own = head_angles(record.camera.astype(np.float64)), record.expression[0]
        for row in range(1, record.frames):
            asked.append((own + bank[record.info["bank"][row]]).clip(0, 1) - own)
            shown.append(record.expression[row] - own)
            turns.append(record.info["turn_deg"][row])
            turned.append(angles[row] - angles[0])
    refused = len(read_index(split).rejects)
    print(f"{len(records)} clips, {len(asked)} frames that differ from their portrait, {refused} portraits refused")
    a, b, t, d = map(np.array, (asked, shown, turns, turned))
    moved = np.abs(t).max(1) > 0
    lines = [(name, a[:, ARKIT52.index(name)], b[:, ARKIT52.index(name)]) for name in SCORES]
    lines += [(name, t[moved, axis], d[moved, axis]) for axis, name in enumerate(("yaw", "pitch", "roll"))]
    for name, x, y in lines:
        print(f"{name:<20} correlation {np.corrcoef(x, y)[0, 1]:.2f} slope {np.cov(x, y)[0, 1] / x.var(ddof=1):.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
