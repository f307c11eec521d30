"""Video files: frames in at a steady rate, frames and sound out.

Frames are `uint8 (H, W, 3)` RGB and stream one at a time: memory does not grow with the length of a video.
"""

from export3d.video.reading import FPS, MAX_SIDE, VideoInfo, probe, read_frames
from export3d.video.writing import VideoWriter

__all__ = ["FPS", "MAX_SIDE", "VideoInfo", "VideoWriter", "probe", "read_frames"]
