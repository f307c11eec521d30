"""Video files: read frames at a constant rate, write frames and sound.

Frames are `uint8 (H, W, 3)` RGB and are streamed: memory does not grow with the length of a video.
"""

from export3d.video.reading import FPS, VideoInfo, probe, read_frames
from export3d.video.view import MAX_SIDE
from export3d.video.writing import VideoWriter

__all__ = ["FPS", "MAX_SIDE", "VideoInfo", "VideoWriter", "probe", "read_frames"]
