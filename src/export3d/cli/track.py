"""`export3d track`: converts a video of a face, or a Live Link Face recording, to a motion file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from export3d.cli.terminal import frame_counter, tell


def command(
    video: tyro.conf.Positional[Path],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    start: float = 0.0,
    seconds: float | None = None,
    face: str = "largest",
    note: str = "",
    summary: bool = False,
) -> int:
    """Track the face in a video, or read an ARKit recording, and write its expressions and cameras.

    Args:
        video: a video, or a recording of the Live Link Face app (.csv), which keeps its own frame rate.
        output: the motion file to write (.motion).
        start: start at this time of the video, seconds.
        seconds: maximum duration, seconds; the file is read no further.
        face: of several: largest (largest and longest in view), left, right, or a number counted from the left.
        note: remark to store in the file, such as the source and terms of the video.
        summary: print frames, angles and scores.
    """
    from export3d.animate.export import check_output
    from export3d.face.tracker import face_choice

    check_output(output, (".motion",), [video])
    face_choice(face, one=True)
    if video.suffix.lower() == ".csv":
        from export3d.animate.drive import part
        from export3d.motion.livelink import load_live_link_face

        track, motion = None, part(load_live_link_face(video), video, start, seconds)
    else:
        from export3d.face.tracker import Tracker

        with frame_counter("tracking", video) as count:
            track = Tracker().track_video(video, progress=count, face=face, start_s=start, seconds=seconds)
        motion = track.motion
    if note:
        motion = replace(motion, meta={**motion.meta, "note": note})
    motion.save(output)
    if summary:
        print(f"frames       {len(motion)} at {motion.fps:g} fps ({motion.duration_s:.2f} s)")
        if track is not None:
            print(f"found        {100.0 * track.found.mean():.1f} %")
            print(f"reprojection {track.median_reprojection:.2f} px (median, at 256 px)")
        for name, angles in zip(("yaw", "pitch", "roll"), motion.angles_deg.T):
            print(f"{name:<12} {angles.min():+.1f} to {angles.max():+.1f} degrees")
        for name in ("jawOpen", "eyeBlink"):
            scores = motion.scores(name)
            print(f"{name:<12} {scores.min():.2f} to {scores.max():.2f}")
    tell(f"wrote {output}")
    return 0
