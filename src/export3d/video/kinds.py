"""Which demuxer reads a file, told by its first bytes alone.

A disguised playlist therefore never reaches a demuxer that opens other files.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from export3d import files
from export3d.errors import BadVideo
from export3d.video import animated_image

READ = "mp4, mov, mkv, webm, avi, wmv, flv, ogg, mpeg or an animated gif, png or webp"
_FIRST_BYTES = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (b"FLV\x01", "flv"),
    (b"OggS", "ogg"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"\x00\x00\x01\xb3", "mpegvideo"),
)


def demuxer_of(path: Path) -> str | None:
    """FFmpeg's demuxer for a file; None if the file is no known kind of video for FFmpeg."""
    head = files.sniff(path, 1024)
    if files.still_kind(head) is not None:
        return None
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"):
        return "mov"
    for first_bytes, demuxer in _FIRST_BYTES:
        if head.startswith(first_bytes):
            return demuxer
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if len(head) > 576 and (all(head[i] == 0x47 for i in (0, 188, 376)) or all(head[i] == 0x47 for i in (4, 196, 388))):
        return "mpegts"
    return _raw_stream(head)


def is_video(path: Path) -> bool:
    """Whether a file is of a kind that is read as a video, by its first bytes."""
    return demuxer_of(path) is not None or animated_image.is_animated(path)


def refusal(path: Path) -> BadVideo:
    """The sentence for a file that is no video."""
    head = files.sniff(path, 1024)
    if files.still_kind(head) is not None:
        return BadVideo(f"{path} is {files.foreign_kind(head)}, not a video; give a video that shows a face")
    if (
        head[:3] == b"\xff\xd8\xff"
        or head[:8] == b"\x89PNG\r\n\x1a\n"
        or head[:2] == b"BM"
        or head[:4] in (b"II*\x00", b"MM\x00*")
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
    ):
        return BadVideo(f"{path} is a still image, not a video; give a video ({READ})")
    if head[:4] == b"fLaC" or head[:3] == b"ID3" or (head[:4] == b"RIFF" and head[8:12] == b"WAVE"):
        return BadVideo(f"{path} holds only sound; give a video that shows a face")
    kind = files.foreign_kind(head) or ("text" if _is_text(head) else "an unknown kind of file")
    return BadVideo(f"{path} is not a video but {kind}; give an {READ}")


def _raw_stream(head: bytes) -> str | None:
    """The demuxer of a stream without a container: H.265 begins with one of these units, H.264 with others."""
    if head[:3] == b"\x00\x00\x01":
        head = b"\x00" + head
    if head[:4] != b"\x00\x00\x00\x01" or len(head) < 6:
        return None
    if head[5] == 1 and head[4] >> 1 in (32, 33, 35):  # video or sequence parameters, delimiter
        return "hevc"
    return "h264" if head[4] < 128 and head[4] & 31 in (6, 7, 9) else None  # information, parameters, delimiter


def _is_text(head: bytes) -> bool:
    """Whether bytes are UTF-8 text; a character cut off at the end is ignored."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(head)
    return "\ufffd" not in text and all(character.isprintable() or character.isspace() for character in text)
