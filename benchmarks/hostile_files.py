"""Makes files that somebody might send to break a studio: 500 of them, the same for the same seed.

For `hostile_uploads.py` and the tests of the intake. Nothing here is harmful: paths that disguised playlists name are
of this machine, and what an unpickled file would do is to create an empty file.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image

COUNT = 500
Make = Callable[[Path], object]

SECRET = "/etc/passwd"
PLAIN = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "MPO", "HEIC")
"""Kinds of images that the package reads."""
CONTAINERS = {
    "mp4": "mpeg4", "mov": "mpeg4", "matroska": "mpeg4", "webm": "libvpx", "avi": "mpeg4", "mpegts": "mpeg2video",
    "flv": "flv1", "ogg": "libvpx", "asf": "msmpeg4", "gif": "gif", "mpeg": "mpeg1video",
}  # fmt: skip
"""Containers and a codec that goes into each."""
NAMES = (
    "../../../etc/passwd", "..\\..\\windows\\win.ini", "/etc/shadow", "photo.png\0.exe", "\0", "", " ", ".", "..",
    "a" * 4000 + ".png", "\u202egnp.exe", "line\nbreak.png", "tab\tbell\a.png", "-rf", "--help", "%2e%2e%2fetc",
    "con.png", "file:///etc/passwd", "x.png; rm -rf ~", "$(reboot).png", "\ud800.png", "{0}.png", "\"'<img src=x>.png",
    "\u0660" * 300, "\N{PILE OF POO}.png",
)  # fmt: skip
"""Names that are tricks of their own."""


@dataclass(frozen=True)
class Case:
    """One hostile upload.

    Attributes:
        verb: what the intake is asked to do with it: photo, background, video, motion or verify.
        group: the row of the table.
        name: the user's name of it.
        make: writes the file.
    """

    verb: str
    group: str
    name: str
    make: Make


def cases(seed: int = 0) -> list[Case]:
    """All cases, in the order of their groups."""
    made = [case for kind in MAKERS for case in cases_of(kind, seed)]
    rng = np.random.default_rng(seed)
    while len(made) < COUNT:
        kind = PLAIN[len(made) % len(PLAIN)]
        made.append(_changed("photo", "images, bits flipped", kind, image_bytes(kind), rng, _flipped))
    order = list(dict.fromkeys(case.group for case in made))
    return sorted(made[:COUNT], key=lambda case: order.index(case.group))


def cases_of(kind: str, seed: int = 0) -> list[Case]:
    """The cases of a kind, one of `MAKERS`."""
    return list(MAKERS[kind](np.random.default_rng([seed, list(MAKERS).index(kind)])))


def written(data: bytes) -> Make:
    """Writes these bytes."""
    return lambda path: path.write_bytes(data)


def made_by(data: Callable[[], bytes]) -> Make:
    """Writes bytes that are made when they are needed."""
    return lambda path: path.write_bytes(data())


# --- images -----------------------------------------------------------------------------------------------------------


def picture(width: int = 320, height: int = 240) -> Image.Image:
    """A smooth image with some noise."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 9, (height, width))
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256 // 2 + noise], -1)
    return Image.fromarray(pixels.astype(np.uint8))


@cache
def image_bytes(kind: str) -> bytes:
    """A sound image file of a kind in `PLAIN`."""
    data = io.BytesIO()
    if kind == "HEIC":
        import pillow_heif

        pillow_heif.from_pillow(picture()).save(data, quality=70)
    elif kind == "MPO":
        picture().save(data, "MPO", save_all=True, append_images=[picture()])
    elif kind == "GIF":
        picture().save(data, "GIF", save_all=True, append_images=[picture().rotate(9)] * 3)
    elif kind == "TIFF":
        picture().save(data, "TIFF", compression="tiff_deflate")
    else:
        picture().save(data, kind)
    return data.getvalue()


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(1, len(data)))]


def _flipped(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    near = min(len(changed), 600) if rng.random() < 0.5 else len(changed)  # headers matter most
    for at in rng.integers(0, near, int(rng.integers(1, 40))):
        changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _changed(
    verb: str,
    group: str,
    suffix: str,
    data: bytes,
    rng: np.random.Generator,
    change: Callable[[bytes, np.random.Generator], bytes],
) -> Case:
    return Case(verb, group, f"{group}.{suffix.lower()}".replace(",", "").replace(" ", "-"), written(change(data, rng)))


def _images(rng: np.random.Generator) -> Iterator[Case]:
    for kind in PLAIN:
        for _ in range(5):
            yield _changed("photo", "images, cut off", kind, image_bytes(kind), rng, _cut)
        for _ in range(6):
            yield _changed("photo", "images, bits flipped", kind, image_bytes(kind), rng, _flipped)
        for other in rng.choice(PLAIN, 3, replace=False):
            data = image_bytes(str(other))[:16] + image_bytes(kind)[16:]
            yield Case("background", "images, another kind's first bytes", f"a.{kind.lower()}", written(data))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, packed: bytes, *extra: bytes) -> bytes:
    """A PNG file with any header."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *extra, chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def zeros(size: int) -> bytes:
    """So many zeros, deflated."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(size >> 20)]
    return b"".join([*parts, packer.compress(bytes(size & 0xFFFFF)), packer.flush()])


def _bombs(rng: np.random.Generator) -> Iterator[Case]:
    bombs: dict[str, Callable[[], bytes]] = {
        "50000.png": lambda: png(50_000, 50_000, 1, 0, zeros(50_000 * 6251)),
        "rgba.png": lambda: png(7_000, 7_000, 8, 6, zeros(7_000 * 28_001)),
        "16bit.png": lambda: png(7_000, 7_000, 16, 6, zeros(7_000 * 56_001)),
        "palette.png": lambda: png(
            *(7_000, 7_000, 8, 3, zeros(7_000 * 7_001)), chunk(b"PLTE", bytes(768)), chunk(b"tRNS", bytes(256))
        ),
        "line.png": lambda: png(2**31 - 1, 1, 8, 0, zeros(1000)),
        "thin.png": lambda: png(16, 3_000_000, 8, 2, zeros(3_000_000 * 49)),
        "text.png": lambda: png(64, 64, 8, 0, zeros(64 * 65), chunk(b"zTXt", b"Comment\0\0" + zeros(200_000_000))),
        "profile.png": lambda: png(64, 64, 8, 2, zeros(64 * 193), chunk(b"iCCP", b"a\0\0" + zeros(200_000_000))),
        "screen.gif": lambda: b"GIF89a\xff\xff\xff\xff\xf7\0\0" + image_bytes("GIF")[13:],
        "big.jpg": lambda: _resized_jpeg(65_500, 65_500),
        "long.jpg": lambda: _resized_jpeg(65_500, 700),
        "big.bmp": lambda: image_bytes("BMP")[:18] + struct.pack("<ii", 2**30, 2**30) + image_bytes("BMP")[26:],
        "rle.bmp": lambda: _rle_bmp(30_000, 1_600),
        "deflate.tiff": lambda: _tiff(7_000, 7_000, zeros(7_000 * 21_000)),
        "wide.tiff": lambda: _tiff(2**31 - 1, 2**31 - 1, zeros(1000)),
        "many.tiff": lambda: _tiff(64, 64, zeros(64 * 192), pages=100_000),
    }
    for name, data in bombs.items():
        yield Case("photo", "images, decompression bombs", name, made_by(data))


def _resized_jpeg(width: int, height: int) -> bytes:
    data = bytearray(image_bytes("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _rle_bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    palette = bytes(1024)
    rows = b"\xff\x01" * 50 + b"\0\1"
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(rows), 0, 0, 54 + 1024) + head + palette + rows


def _tiff(width: int, height: int, packed: bytes, pages: int = 1) -> bytes:
    """A deflated RGB TIFF; with many pages, each is the first and they follow one another in a circle."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 8), (262, 3, 2), (273, 4, 8), (277, 3, 3)]
    tags += [(278, 4, height), (279, 4, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    following = 8 + len(packed) if pages > 1 else 0
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory


def _animations(rng: np.random.Generator) -> Iterator[Case]:
    for verb in ("photo", "video", "background"):
        yield Case(verb, "animations of 10,000 frames", "many.gif", made_by(lambda: long_gif(10_000)))
        yield Case(verb, "animations of 10,000 frames", "many.png", made_by(lambda: _long_png(10_000)))
        yield Case(verb, "animations of 10,000 frames", "large.gif", made_by(lambda: long_gif(10_000, 2000)))


def long_gif(frames: int, side: int = 64) -> bytes:
    """A GIF of so many frames."""
    data = io.BytesIO()
    Image.new("P", (side, side)).save(data, "GIF")
    one = data.getvalue()
    at = one.index(b",", 13 + 3 * 2 ** ((one[10] & 7) + 1))
    control = b"\x21\xf9\x04\x00\x02\x00\x00\x00"
    return one[:at] + (control + one[at:-1]) * frames + b";"


def _long_png(frames: int) -> bytes:
    packed = zeros(64 * 65)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0))]
    parts.append(chunk(b"acTL", struct.pack(">II", frames, 0)))
    number = 0
    for k in range(frames):
        control = struct.pack(">IIIIIHHBB", number, 64, 64, 0, 0, 1, 25, 0, 0)
        parts.append(chunk(b"fcTL", control))
        number += 1
        parts.append(chunk(b"IDAT", packed) if k == 0 else chunk(b"fdAT", struct.pack(">I", number) + packed))
        number += k > 0
    return b"".join([*parts, chunk(b"IEND", b"")])


# --- videos -----------------------------------------------------------------------------------------------------------


@cache
def video_bytes(container: str, frames: int = 25) -> bytes:
    """A small video of a kind in `CONTAINERS`."""
    data = io.BytesIO()
    with av.open(data, "w", format=container) as out:
        stream = out.add_stream(CONTAINERS[container], rate=Fraction(25))
        stream.width, stream.height = 160, 120
        stream.pix_fmt = "rgb8" if container == "gif" else "yuv420p"
        for k in range(frames):
            frame = av.VideoFrame.from_image(picture(160, 120).rotate(3 * k))
            frame.pts = k
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return data.getvalue()


def _playlists(rng: np.random.Generator) -> Iterator[Case]:
    remote = "http://127.0.0.1:9/a.ts"
    texts = {
        "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n",
        "hls-key": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{{}}"\n#EXTINF:10,\n{remote}\n#EXT-X-ENDLIST\n',
        "m3u": "{}\n",
        "ffconcat": "ffconcat version 1.0\nfile '{}'\nduration 5\n",
        "concat": "concat:{}|{}",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet>'
        '<Representation id="0"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>',
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns={}\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "subfile": "subfile,,start,0,end,100,,:{}",
        "entity": '<!DOCTYPE a [<!ENTITY x SYSTEM "{}">]><MPD>&x;</MPD>',
    }
    for kind, text in texts.items():
        for target in (f"file://{SECRET}", remote):
            body = text.replace("{}", target).encode()
            for first in (b"", b"\0\0\0\x08free"):
                yield Case("video", "playlists posing as videos", f"{kind}.mp4", written(first + body))
    for first in (b"\xef\xbb\xbf", b"GIF89a", b"RIFF\0\0\0\0AVI ", b"\x1a\x45\xdf\xa3"):
        body = texts["hls"].replace("{}", SECRET).encode()
        yield Case("video", "playlists posing as videos", "a.mp4", written(first + body))
    yield Case("video", "playlists posing as videos", "reference.mov", written(_referring_mov(f"file://{SECRET}")))
    yield Case(
        "photo", "playlists posing as videos", "a.svg", written(f'<svg><image href="file://{SECRET}"/></svg>'.encode())
    )
    yield Case("photo", "playlists posing as videos", "a.eps", written(f"%!PS\n({SECRET}) (r) file\n".encode()))


def box(kind: bytes, *parts: bytes) -> bytes:
    """A box of an MP4 file."""
    data = b"".join(parts)
    return struct.pack(">I", 8 + len(data)) + kind + data


def _referring_mov(url: str) -> bytes:
    """A film whose samples lie in another file."""
    data = video_bytes("mov")
    at = data.index(b"dref")
    end = at - 4 + int.from_bytes(data[at - 4 : at], "big")
    new = box(b"dref", struct.pack(">II", 0, 1), box(b"url ", bytes(4), url.encode() + b"\0"))
    grown = len(new) - (end - at + 4)
    changed = bytearray(data[: at - 4] + new + data[end:])
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = changed.index(parent) - 4
        changed[place : place + 4] = (int.from_bytes(changed[place : place + 4], "big") + grown).to_bytes(4, "big")
    return bytes(changed)


def _videos(rng: np.random.Generator) -> Iterator[Case]:
    for container in CONTAINERS:
        data = video_bytes(container)
        for _ in range(3):
            yield _changed("video", "videos, cut off", container, data, rng, _cut)
        for _ in range(4):
            yield _changed("video", "videos, bits flipped", container, data, rng, _flipped)


def _absurd_videos(rng: np.random.Generator) -> Iterator[Case]:
    def absurd(name: str, make: Make) -> Case:
        return Case("video", "videos, absurd headers", name, make)

    data = video_bytes("mp4")

    def replaced(kind: bytes, at: int, value: bytes) -> bytes:
        changed = bytearray(data)
        place = changed.index(kind) + 4 + at
        changed[place : place + len(value)] = value
        return bytes(changed)

    yield absurd("wide.mp4", written(replaced(b"mp4v", 24, b"\xff\xff\xff\xff")))
    yield absurd("clock.mp4", written(replaced(b"mdhd", 12, b"\xff\xff\xff\xff\x00\x00\x00\x01")))
    yield absurd("year.mp4", written(replaced(b"mdhd", 12, b"\x00\x00\x00\x01\x7f\xff\xff\xff")))
    yield absurd("still.mp4", written(replaced(b"mdhd", 12, bytes(8))))
    yield absurd("sizes.mp4", written(replaced(b"stsz", 8, b"\xff\xff\xff\xf0")))
    yield absurd("times.mp4", written(replaced(b"stts", 4, b"\xff\xff\xff\xff")))
    yield absurd("long.mp4", written(replaced(b"stts", 8, b"\x7f\xff\xff\xff\x7f\xff\xff\xff")))
    yield absurd("nested.mp4", written(data[:32] + _nested(20_000)))
    yield absurd(
        "empty.mp4", written(box(b"ftyp", b"isom", bytes(4), b"isom") + box(b"moov", box(b"mvhd", bytes(100))))
    )
    yield absurd("none.mp4", written(video_bytes("mp4", 0)))
    yield absurd("none.mkv", written(video_bytes("matroska", 0)))
    yield absurd("alone.gif", written(image_bytes("GIF")[:200]))
    yield absurd("sparse.mp4", lambda path: _sparse(path, data[:40]))
    yield absurd("sparse.mkv", lambda path: _sparse(path, video_bytes("matroska")[:2000]))
    yield absurd("sparse.ts", lambda path: _sparse(path, video_bytes("mpegts")))
    yield absurd("sparse.h264", lambda path: _sparse(path, b"\0\0\0\1\x67" + bytes(100)))
    yield absurd("zeros.mp4", lambda path: _sparse(path, b""))
    yield absurd("mdat.mp4", lambda path: _sparse(path, b"\0\0\0\1mdat" + (2**31 - 100).to_bytes(8, "big")))
    yield absurd("noise.mpg", written(b"\0\0\1\xba" + np.random.default_rng(1).bytes(5_000_000)))
    yield absurd("noise.h264", written(b"\0\0\0\1\x67" + np.random.default_rng(2).bytes(5_000_000)))


def _nested(depth: int) -> bytes:
    return b"".join((8 * left).to_bytes(4, "big") + b"moov" for left in range(depth, 0, -1))


def _sparse(path: Path, head: bytes) -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(2 << 30)


# --- motions ----------------------------------------------------------------------------------------------------------


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def motion_bytes(expression: np.ndarray, camera: np.ndarray, **notes: str) -> bytes:
    """A .motion file that may hold anything."""
    parts = [np.ascontiguousarray(part, np.float32).tobytes() for part in (expression, camera)]
    layout: dict[str, object] = {
        "__metadata__": {"format": "export3d.motion", "version": "1", "fps": "25.0", "space": "arkit52"} | notes
    }
    at = 0
    for name, part, shape in (("expression", parts[0], expression.shape), ("camera", parts[1], camera.shape)):
        layout[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + len(part)]}
        at += len(part)
    return safetensors(layout, b"".join(parts))


class Runs:
    """Unpickling this creates a file."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("/tmp/export3d-was-unpickled", "w")


def _npz(**arrays: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)  # type: ignore[arg-type]
    return data.getvalue()


def zip_bomb(path: Path, member: str = "exp.npy", size: int = 4 << 30) -> None:
    """A NumPy archive of one array of zeros that unpacks to so many bytes."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(  # type: ignore[no-untyped-call]
        head, {"descr": "<f4", "fortran_order": False, "shape": (size // 257 // 4, 257)}
    )
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(member, "w", force_zip64=True) as file,
    ):
        file.write(head.getvalue())
        for _ in range(size >> 24):
            file.write(bytes(1 << 24))


def _motions(rng: np.random.Generator) -> Iterator[Case]:
    group = "motion files"
    camera = np.tile(np.eye(5, dtype=np.float32).ravel(), (10, 1))
    good, scores = np.zeros((10, 52), np.float32), np.full((10, 52), np.nan, np.float32)
    for name, data in {
        "wrong": motion_bytes(np.zeros((10, 51)), camera),
        "uneven": motion_bytes(np.zeros((9, 52)), camera),
        "empty": motion_bytes(np.zeros((0, 52)), np.zeros((0, 25))),
        "flat": motion_bytes(np.zeros(520), camera),
        "nan": motion_bytes(scores, camera),
        "infinite": motion_bytes(good, camera + np.inf),
        "huge": motion_bytes(good + 1e30, camera),
        "zero": motion_bytes(good, camera * 0),
        "rate": motion_bytes(good, camera, fps="1e-300"),
        "rates": motion_bytes(good, camera, fps="nan"),
        "slow": motion_bytes(good, camera, fps="0.000001"),
        "space": motion_bytes(good, camera, space="../x"),
        "version": motion_bytes(good, camera, version="9" * 10_000),
        "notes": motion_bytes(good, camera, **{"note" * 100: "x" * 900_000}),
        "length": safetensors(b"{}", length=2**63),
        "longer": safetensors(b"{}", length=100_000_000),
        "short": safetensors(b"{")[:9],
        "deep": safetensors(b"[" * 100_000 + b"]" * 100_000),
        "deeper": safetensors(b'{"a":' * 100_000),
        "text": safetensors(b"\xff\xfe{}"),
        "claims": safetensors({"expression": {"dtype": "F32", "shape": [2**40, 52], "data_offsets": [0, 2**45]}}),
        "negative": safetensors({"expression": {"dtype": "F32", "shape": [-1, 52], "data_offsets": [0, 8]}}, bytes(8)),
        "overlap": safetensors({k: {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]} for k in "ab"}, bytes(8)),
        "pickle": pickle.dumps(Runs()),
    }.items():
        yield Case("motion", group, f"{name}.motion", written(data))
    body = _npz(x=rng.random((100, 257)).astype(np.float32))
    objects = io.BytesIO()
    np.savez(objects, exp=np.array([Runs()], dtype=object))
    for suffix in ("npz", "mat", "motion", "csv"):
        yield Case("motion", group, f"pickle.{suffix}", written(pickle.dumps(Runs())))
        yield Case("motion", group, f"objects.{suffix}", written(objects.getvalue()))
        yield Case("motion", group, f"video.{suffix}", written(video_bytes("mp4")))
        yield Case("motion", group, f"noise.{suffix}", written(rng.bytes(100_000)))
        yield Case("motion", group, f"empty.{suffix}", written(b""))
    for name in ("shape", "nan", "none"):
        values = {"shape": np.zeros((9, 9)), "nan": np.full((9, 257), np.nan), "none": np.zeros((0, 257))}[name]
        yield Case("motion", group, f"{name}.npz", written(_npz(x=values)))
    yield Case("motion", group, "bomb.npz", zip_bomb)
    yield Case("motion", group, "slip.npz", lambda path: zip_bomb(path, "../../../tmp/slip.npy", 1 << 24))
    yield Case("motion", group, "lies.npz", _lying_zip)
    yield Case("motion", group, "bomb.mat", made_by(lambda: _mat(zeros(2 << 30))))
    yield Case("motion", group, "many.npz", written(_npz(**{f"a{k}": np.zeros(1) for k in range(5000)})))
    for _ in range(8):
        yield _changed("motion", group, "npz", body, rng, _flipped)
        yield _changed("motion", group, "motion", motion_bytes(good, camera), rng, _flipped)
        yield _changed("motion", group, "motion", motion_bytes(good, camera), rng, _cut)
        yield _changed("motion", group, "mat", _mat(zlib.compress(rng.bytes(5000))), rng, _flipped)


def _mat(packed: bytes) -> bytes:
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    return head + struct.pack("<II", 15, len(packed)) + packed


def _lying_zip(path: Path) -> None:
    """An archive whose directory says that its 1 GB are 1000 bytes."""
    zip_bomb(path, size=1 << 30)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 1000)
    path.write_bytes(data)


# --- tables -----------------------------------------------------------------------------------------------------------


def _tables(rng: np.random.Generator) -> Iterator[Case]:
    from export3d.motion.arkit import ARKIT52

    header = "Timecode,BlendShapeCount," + ",".join([*ARKIT52, "HeadYaw", "HeadPitch", "HeadRoll"])
    row = "11:54:{:02d}:19.804,61," + ",".join(["0.1"] * 55)
    good = "\n".join([header, *(row.format(k) for k in range(20))])

    def table(name: str, make: Make) -> Case:
        return Case("motion", "tables (CSV)", f"{name}.csv", make)

    texts = {
        "formula": good.replace("0.1", "=cmd|'/C calc'!A0"),
        "link": good.replace("0.1", '=HYPERLINK("http://127.0.0.1:9/")'),
        "words": good.replace("0.1", "x" * 5000),
        "nan": good.replace("0.1", "nan"),
        "infinite": good.replace("0.1", "1e999"),
        "digits": good.replace("0.1", "9" * 5000),
        "times": good.replace("11:54", "99:99"),
        "backwards": "\n".join([header, row.format(9), row.format(1)]),
        "header": header,
        "columns": header.replace("o", "0") + "\n" + row.format(1),
        "quote": good.replace("11:54:05", '"11:54:05'),
        "delimiters": good.replace(",", ";,\t"),
        "nul": good.replace("11:54:05", "\0" * 100),
        "rtl": good.replace("11:54:05", "\u202e" * 100),
        "same": "\n".join([header, *[row.format(1)] * 50_000]),
        "blank": header + "\n" * 1_000_000,
        "crlf": good.replace("\n", "\r"),
    }
    for name, text in texts.items():
        yield table(name, written(text.encode()))
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-7", "cp500"):
        yield table(encoding, written(good.encode(encoding)))
    yield table("wide", made_by(lambda: b"Timecode," + b"a," * 10_000_000 + b"b\n" + b"1," * 1000))
    yield table("wider", made_by(lambda: (header + ",x" * 10_000_000 + "\n").encode() * 2))
    yield table("line", made_by(lambda: b"x" * 100_000_000 + b"\n"))
    yield table("long", made_by(lambda: (header + "\n" + (row.format(1) + "\n") * 400_000).encode()))
    for _ in range(6):
        yield _changed("motion", "tables (CSV)", "csv", good.encode(), rng, _flipped)
        yield _changed("motion", "tables (CSV)", "csv", good.encode(), rng, _cut)


# --- verified files, names --------------------------------------------------------------------------------------------


def _verified(rng: np.random.Generator) -> Iterator[Case]:
    group = "files to verify"
    for kind in ("PNG", "JPEG", "WEBP"):
        for _ in range(3):
            yield _changed("verify", group, kind, image_bytes(kind), rng, _flipped)
    manifest = struct.pack(">I", 0xFFFFFFF0) + b"jumb" + struct.pack(">I", 0x7FFFFFFF) + b"jumdc2pa" + rng.bytes(5000)
    marked = image_bytes("PNG")
    yield Case("verify", group, "manifest.png", written(marked[:33] + chunk(b"caBX", manifest) + marked[33:]))
    jpeg = image_bytes("JPEG")
    segment = b"\xff\xeb" + struct.pack(">H", 5002) + b"JP\0\1\0\0\0\1" + manifest[:4992]
    yield Case("verify", group, "manifest.jpg", written(jpeg[:2] + segment + jpeg[2:]))
    xmp = b"<x:xmpmeta>" + b"<!ENTITY a '&a;&a;'>" * 10_000 + b"CreatorTool=" + b"A" * 1_000_000 + b"</x:xmpmeta>"
    for text in (xmp, b"<x:xmpmeta>" * 100_000, b"{" * 1_000_000, b'{"payload":' * 100_000):
        yield Case(
            "verify",
            group,
            "packet.png",
            written(marked[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text) + marked[33:]),
        )
    for container in ("mp4", "matroska", "gif", "avi"):
        yield _changed("verify", group, container, video_bytes(container), rng, _flipped)
    yield Case("verify", group, "sparse.mp4", lambda path: _sparse(path, video_bytes("mp4")))
    yield Case("verify", group, "50000.png", made_by(lambda: png(50_000, 50_000, 1, 0, zeros(50_000 * 6251))))
    yield Case("verify", group, "many.gif", made_by(lambda: long_gif(10_000)))
    yield Case("verify", group, "text.txt", written(b"no image\n" * 1000))
    yield Case("verify", group, "empty", written(b""))


def _names(rng: np.random.Generator) -> Iterator[Case]:
    for name in NAMES:
        yield Case("photo", "tricks in names", name, written(b"not an image"))
        yield Case("motion", "tricks in names", f"{name}.csv", written(b"a,b\n1,2\n"))


MAKERS: dict[str, Callable[[np.random.Generator], Iterator[Case]]] = {
    "images": _images,
    "bombs": _bombs,
    "animations": _animations,
    "playlists": _playlists,
    "videos": _videos,
    "absurd videos": _absurd_videos,
    "motions": _motions,
    "tables": _tables,
    "verified": _verified,
    "names": _names,
}
