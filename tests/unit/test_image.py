import io
import logging
import os
import pickle
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from export3d.errors import BadImage, OutputError, ShapeError
from export3d.image import contact_sheet, fitted, from_pillow, read_image, resize, to_tensor, to_uint8, write_png
from tests.colour_profiles import WIDE, cmyk_profile, encoded, grey_profile, in_space, rgb_profile, srgb_of_lab


@pytest.fixture
def picture(rng: np.random.Generator) -> np.ndarray:
    """A 48 x 32 picture whose corners all differ."""
    return np.asarray(
        Image.fromarray(rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)).resize((32, 48), Image.Resampling.BILINEAR)
    )


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG with any header; `rows` are the bytes before compression."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
        + b"".join(extra)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


# --- every kind of picture ---


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "gif"])
def test_lossless_files_give_the_same_pixels(picture: np.ndarray, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    image = Image.fromarray(picture)
    if suffix == "gif":
        image = image.quantize(64)
        picture = np.asarray(image.convert("RGB"))
    image.save(path, **({"lossless": True} if suffix == "webp" else {}))
    out = read_image(path)
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    assert out.flags.writeable
    np.testing.assert_array_equal(out, picture)


def test_the_kind_is_told_by_the_content_and_not_by_the_name(picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a.jpg", "PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), picture)


def test_a_jpeg_is_close_to_what_was_saved(picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - picture).mean() < 2


def test_grey_becomes_three_equal_channels(picture: np.ndarray, tmp_path: Path) -> None:
    grey = Image.fromarray(picture).convert("L")
    grey.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.repeat(np.asarray(grey)[..., None], 3, axis=2))


def test_black_and_white_becomes_0_and_255(tmp_path: Path) -> None:
    bits = np.indices((20, 20)).sum(axis=0) % 2 == 1
    Image.fromarray(bits).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[..., 0], bits * 255)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 20 * 30).reshape(20, 30).round().astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    out = read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(out[..., 0], np.round(values / 257))
    assert (out[..., 0] == out[..., 2]).all()


def test_dark_16_bit_grey_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 20), 200, np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").max() <= 1


def test_16_bit_colour_is_scaled(tmp_path: Path) -> None:
    rows = b"".join(b"\x00" + struct.pack(">HHH", 65535, 32896, 0) * 20 for _ in range(20))
    (tmp_path / "a.png").write_bytes(png(20, 20, 16, 2, rows))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[3, 4], [255, 128, 0])


def test_float_and_32_bit_grey_are_scaled(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 400).reshape(20, 20)
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "unit.tiff")
    Image.fromarray((values * 65535).round().astype(np.int32)).save(tmp_path / "int.tiff")
    for name in ("unit.tiff", "int.tiff"):
        np.testing.assert_allclose(read_image(tmp_path / name)[..., 1], values * 255, atol=0.51)


def test_nan_in_a_float_picture_becomes_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 20), np.nan, np.float32)).save(tmp_path / "a.tiff")
    assert read_image(tmp_path / "a.tiff").max() == 0


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg")[10, 10], [255, 0, 0], atol=4)


def test_a_palette_becomes_rgb(picture: np.ndarray, tmp_path: Path) -> None:
    palette = Image.fromarray(picture).quantize(16)
    palette.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 10, 20))
    image.paste((0, 0, 0, 128), (0, 0, 10, 10))
    image.convert(mode).save(tmp_path / "a.png")
    out = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(out[15, 5], [255, 255, 255])
    np.testing.assert_array_equal(out[5, 15], [0, 0, 0])
    np.testing.assert_allclose(out[5, 5], 127, atol=1)


def test_a_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (20, 20), 0)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.paste(1, (10, 0, 20, 20))
    image.save(tmp_path / "a.png", transparency=0)
    out = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(out[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(out[0, 15], [200, 10, 10])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_exif_rotation_is_undone(picture: np.ndarray, tmp_path: Path, orientation: int, suffix: str) -> None:
    """The reference is spelled out with NumPy: what each orientation does to an upright picture before storing."""
    stored = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.swapaxes(0, 1),
        6: np.rot90(picture, 1),
        7: picture[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(picture, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), picture)


def test_a_jpeg_from_a_phone_held_upright_is_upright(picture: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(picture, 1).copy()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    out = read_image(tmp_path / "a.jpg")
    assert out.shape == picture.shape
    assert np.abs(out.astype(int) - picture).mean() < 6


def test_a_senseless_orientation_is_ignored(picture: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 42
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture)


def test_broken_exif_does_not_matter(picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00*" + b"\xff" * 40)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture)


@pytest.mark.parametrize("suffix", ["gif", "webp", "tiff", "png"])
def test_an_animation_gives_its_first_frame_and_says_so(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    with caplog.at_level(logging.WARNING):
        out = read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(out[10, 10], [255, 0, 0])
    assert f"a.{suffix} is an animation of 3 frames; the first one is used" in caplog.text


def test_a_still_picture_says_nothing(picture: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    with caplog.at_level(logging.DEBUG, "export3d"):
        read_image(tmp_path / "a.png")
    assert caplog.text == ""


def test_the_bundled_portrait_is_read(astronaut_path: Path) -> None:
    assert read_image(astronaut_path).shape == (512, 512, 3)


# --- AVIF and HEIC ---


@pytest.fixture
def portrait(astronaut_path: Path) -> np.ndarray:
    """The bundled portrait at 128 x 128 pixels."""
    return fitted(read_image(astronaut_path), 128)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b).mean())


@pytest.mark.parametrize("name", ["photo.avif", "photo.jpg"])
def test_an_avif_is_read_whatever_its_name(portrait: np.ndarray, tmp_path: Path, name: str) -> None:
    Image.fromarray(portrait).save(tmp_path / name, "AVIF", quality=95)
    assert distance(read_image(tmp_path / name), portrait) < 3


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_avif_is_upright(portrait: np.ndarray, tmp_path: Path, orientation: int) -> None:
    """AVIF keeps rotation in boxes of its own, so no EXIF tag may turn it a second time."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.rot90(portrait, {1: 0, 3: 2, 6: 1, 8: 3}[orientation])
    Image.fromarray(stored.copy()).save(tmp_path / "a.avif", exif=exif, quality=95)
    assert distance(read_image(tmp_path / "a.avif"), portrait) < 3


def test_an_animated_avif_gives_its_first_frame(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(read_image(tmp_path / "a.avif")[16, 16], [255, 0, 0], atol=6)
    assert "a.avif is an animation of 2 frames" in caplog.text


def save_heic(path: Path, pixels: np.ndarray, **options: object) -> None:
    heif = pytest.importorskip("pillow_heif", exc_type=ImportError)
    heif.from_pillow(Image.fromarray(pixels)).save(path, quality=95, **options)


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "IMG_1.jpg"])
def test_a_heic_is_read_whatever_its_name(portrait: np.ndarray, tmp_path: Path, name: str) -> None:
    save_heic(tmp_path / "a.heic", portrait)
    (tmp_path / "a.heic").rename(tmp_path / name)
    assert distance(read_image(tmp_path / name), portrait) < 3


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_heic_is_upright(portrait: np.ndarray, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.rot90(portrait, {1: 0, 3: 2, 6: 1, 8: 3}[orientation])
    save_heic(tmp_path / "a.heic", stored.copy(), exif=exif.tobytes())
    assert distance(read_image(tmp_path / "a.heic"), portrait) < 3


def test_a_heic_from_a_phone_has_the_colours_of_its_profile(portrait: np.ndarray, tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", exc_type=ImportError)
    image = Image.fromarray(in_space(portrait, "Display P3"))
    image.info["icc_profile"] = rgb_profile("Display P3")
    heif.from_pillow(image).save(tmp_path / "a.heic", quality=95)
    assert distance(read_image(tmp_path / "a.heic"), portrait) < 3


def test_the_main_image_of_a_heic_is_used(
    portrait: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heif = pytest.importorskip("pillow_heif", exc_type=ImportError)
    images = heif.from_pillow(Image.new("RGB", (64, 64)))
    images.add_from_pillow(Image.fromarray(portrait))
    images.save(tmp_path / "a.heic", quality=95, primary_index=1)
    assert distance(read_image(tmp_path / "a.heic"), portrait) < 3
    assert caplog.text == ""


def test_a_heic_without_its_reader_is_called_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(999))
    refused(tmp_path / "a.jpg", "a HEIC image, which needs pillow-heif; run: pip install -c constraints.txt '..heic.'")


def test_a_truncated_heic_is_refused(portrait: np.ndarray, tmp_path: Path) -> None:
    save_heic(tmp_path / "a.heic", portrait)
    whole = (tmp_path / "a.heic").read_bytes()
    for keep in (24, 200, len(whole) // 2):
        (tmp_path / "a.heic").write_bytes(whole[:keep])
        refused(tmp_path / "a.heic", "not an image that can be read|damaged")


# --- colour profiles ---


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp", "avif"])
@pytest.mark.parametrize("name", WIDE)
def test_colours_of_a_wide_space_become_srgb(portrait: np.ndarray, tmp_path: Path, name: str, suffix: str) -> None:
    lossy = {"quality": 95, "subsampling": "4:4:4"} if suffix in ("jpg", "avif") else {}
    options = {"lossless": True} if suffix == "webp" else lossy
    stored = Image.fromarray(in_space(portrait, name))
    stored.save(tmp_path / f"a.{suffix}", icc_profile=rgb_profile(name), **options)
    assert distance(read_image(tmp_path / f"a.{suffix}"), portrait) < (3 if lossy else 0.6)


def test_transparency_outlives_the_profile(portrait: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(in_space(portrait, "Display P3"))
    alpha = np.full((128, 128), 255, np.uint8)
    alpha[:, :64] = 0
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "a.png", icc_profile=rgb_profile("Display P3"))
    out = read_image(tmp_path / "a.png")
    assert (out[:, :64] == 255).all()
    assert distance(out[:, 64:], portrait[:, 64:]) < 0.6


def test_a_palette_has_a_profile_too(tmp_path: Path) -> None:
    image = Image.new("P", (20, 20), 0)
    image.putpalette(in_space(np.uint8([[[200, 40, 90]]]), "Adobe RGB").ravel().tolist())
    image.save(tmp_path / "a.png", icc_profile=rgb_profile("Adobe RGB"))
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[3, 3], [200, 40, 90], atol=2)


@pytest.mark.parametrize("deep", [False, True])
def test_grey_with_a_profile_becomes_srgb(tmp_path: Path, deep: bool) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(values.astype(np.uint16) * 257) if deep else Image.fromarray(values)
    image.save(tmp_path / "a.png", icc_profile=grey_profile(1.5))
    out = read_image(tmp_path / "a.png")
    # LittleCMS interpolates linearly between a few grid points, which shows in the darkest values
    np.testing.assert_allclose(out[..., 1], encoded((values / 255.0) ** 1.5) * 255, atol=2.5)
    assert (out[..., 0] == out[..., 2]).all()


def test_grey_may_carry_a_profile_of_colours(portrait: np.ndarray, tmp_path: Path) -> None:
    grey = np.asarray(Image.fromarray(portrait).convert("L"))
    stored = in_space(np.repeat(grey[..., None], 3, 2), "ProPhoto RGB")[..., 1]
    Image.fromarray(stored).save(tmp_path / "a.png", icc_profile=rgb_profile("ProPhoto RGB"))
    assert distance(read_image(tmp_path / "a.png")[..., 1], grey) < 0.6


def test_inks_have_the_colours_of_their_profile(tmp_path: Path) -> None:
    inks = {(0, 0, 0, 0): (100.0, 0, 0), (1, 0, 0, 0): (60.0, -20.0, -25.0), (0, 1, 1, 0): (50.0, 40.0, 20.0)}
    for mixture in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 1, 0), (0, 0, 0, 1)]:
        image = Image.new("CMYK", (20, 20), tuple(255 * ink for ink in mixture))
        image.save(tmp_path / "a.tiff", icc_profile=cmyk_profile(inks))
        wanted = srgb_of_lab(*inks.get(mixture, (0.0, 0.0, 0.0)))
        np.testing.assert_allclose(read_image(tmp_path / "a.tiff")[5, 5], wanted, atol=2.5)


@pytest.mark.parametrize("cut", [False, True])
def test_a_profile_too_large_to_unpack_is_ignored(
    portrait: np.ndarray, cut: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(portrait).save(path, icc_profile=rgb_profile("Display P3") + bytes(8 << 20))
    if cut:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(BadImage, match="not complete"):
            read_image(path)
        return
    np.testing.assert_array_equal(read_image(path), portrait)
    assert "a colour profile that is too large" in caplog.text


def test_lab_values_need_no_profile(portrait: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(portrait), srgb, lab, outputMode="LAB")
    assert image is not None
    assert "icc_profile" in image.info
    assert distance(from_pillow(image), portrait) < 2
    assert caplog.text == ""


def test_the_profile_of_srgb_changes_nothing(
    portrait: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(portrait).save(tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), portrait)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("profile", "cause"),
    [
        (b"no profile at all", "cannot open profile"),
        (rgb_profile("Display P3")[:300], "cannot"),
        (grey_profile(1.8), "it is made for GRAY values"),
        (cmyk_profile({}), "it is made for CMYK values"),
    ],
)
def test_a_profile_that_cannot_be_used_is_told_and_ignored(
    portrait: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture, profile: bytes, cause: str
) -> None:
    Image.fromarray(portrait).save(tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), portrait)
    assert "a.png has a colour profile that cannot be used" in caplog.text
    assert cause in caplog.text


# --- images of Pillow ---


def test_an_image_of_pillow_is_read_like_its_file(portrait: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.rot90(in_space(portrait, "Display P3"), 1).copy())
    stored.save(tmp_path / "a.png", exif=exif, icc_profile=rgb_profile("Display P3"))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(from_pillow(image), read_image(tmp_path / "a.png"))
        assert (image.size, image.mode) == (stored.size, "RGB")
    assert distance(from_pillow(Image.fromarray(portrait).convert("RGBA")), portrait) == 0


def test_an_image_of_pillow_that_cannot_be_used_is_refused(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as closed:
        pass
    with pytest.raises(BadImage, match="my photo is damaged or not complete"):
        from_pillow(closed, "my photo")
    with pytest.raises(BadImage, match="the image is 9 x 40, too small"):
        from_pillow(Image.new("RGB", (9, 40)))


# --- what is refused ---


def refused(path: Path, cause: str) -> None:
    with pytest.raises(BadImage, match=cause) as caught:
        read_image(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "; " in sentence, "the remedy is missing"
    assert "\n" not in sentence


def test_a_missing_file_a_folder_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "none.png", "does not exist")
    refused(tmp_path, "is a folder")
    refused(tmp_path / "empty.png", "is empty")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"just text, named .jpg\n" * 10, "not an image that can be read; give a PNG, JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'/>", "not an image"),
        (b"\xff" * 300, "not an image"),
        (bytes(300), "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n", "not an image"),
        (b"SIMPLE  =                    T" + b" " * 50, "not an image"),
        (b"P6 64 64 255\n" + bytes(3 * 64 * 64), "not an image"),
        (pickle.dumps({"image": 1}), "a Python pickle"),
        (b"\x00\x00\x00\x20ftypisom" + bytes(100), "a video"),
    ],
)
def test_other_files_named_jpg_are_refused(tmp_path: Path, content: bytes, cause: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    refused(tmp_path / "a.jpg", cause)


@pytest.mark.parametrize(
    ("name", "keep"),
    [("a.png", 20), ("a.jpg", 20), ("a.png", 0.9)]
    + [(f"a.{kind}", 0.5) for kind in ["png", "jpg", "webp", "tiff", "bmp", "gif"]],
)
def test_a_truncated_image_is_refused(tmp_path: Path, rng: np.random.Generator, name: str, keep: float) -> None:
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    refused(tmp_path / name, "damaged or not complete|not an image")


def test_bytes_changed_inside_give_a_picture_or_one_sentence(tmp_path: Path, rng: np.random.Generator) -> None:
    """Whatever Pillow stumbles over inside a damaged file, nothing but `BadImage` comes out."""
    refusals = 0
    for k, suffix in enumerate(("png", "jpg", "webp", "tiff", "bmp", "gif") * 8):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
            buffer, "JPEG" if suffix == "jpg" else suffix
        )
        content = bytearray(buffer.getvalue())
        for at in rng.integers(8, min(len(content), 200 if k % 2 else len(content)), 6):
            content[at] = rng.integers(0, 256)
        (tmp_path / "a").write_bytes(content)
        try:
            assert read_image(tmp_path / "a").dtype == np.uint8
        except BadImage:
            refusals += 1
    assert 0 < refusals < 48


def test_a_tiff_whose_second_page_is_damaged_is_refused(tmp_path: Path) -> None:
    """Pages are counted before pixels are read; Pillow answers a page without a width by a TypeError."""
    pages = [Image.new("L", (20, 20)), Image.new("L", (20, 20))]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    content = bytearray((tmp_path / "a.tiff").read_bytes())
    width = struct.pack("<HHI", 256, 4, 1)
    second = content.index(width, content.index(width) + 1)
    content[second : second + 2] = struct.pack("<H", 250)
    (tmp_path / "a.tiff").write_bytes(content)
    refused(tmp_path / "a.tiff", "is damaged or not complete")


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15)])
def test_a_picture_too_small_for_a_face_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", f"{size[0]} x {size[1]}, too small")


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_001, 10_000), (65_000, 65_000), (2**31 - 1, 2**31 - 1)])
def test_a_huge_picture_is_refused_from_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    """The file holds a header and no pixels: decoding it would fail in another way."""
    (tmp_path / "a.png").write_bytes(png(*size, 8, 2, b""))
    refused(tmp_path / "a.png", "megapixels; shrink it")


def test_a_huge_picture_is_refused_without_memory_for_it(tmp_path: Path) -> None:
    import tracemalloc

    (tmp_path / "a.png").write_bytes(png(20_000, 20_000, 8, 2, bytes(3_000_000)))
    tracemalloc.start()
    refused(tmp_path / "a.png", "megapixels")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_text_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    bomb = png_chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(200_000_000), 1))
    (tmp_path / "a.png").write_bytes(png(20, 20, 8, 0, bytes(21 * 20), bomb))
    refused(tmp_path / "a.png", "damaged|not an image")


# --- ranges ---


def test_every_byte_survives_the_way_to_floats_and_back() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 16, 16)
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_uint8(tensor), image)


def test_clips_keep_their_order(rng: np.random.Generator) -> None:
    clip = rng.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    tensor = to_tensor(clip)
    assert tensor.shape == (4, 3, 5, 6)
    assert tensor[2, 1, 3, 4].item() == pytest.approx(clip[2, 3, 4, 1] / 127.5 - 1)
    np.testing.assert_array_equal(to_uint8(tensor), clip)


def test_values_outside_the_range_are_clipped() -> None:
    assert to_uint8(torch.tensor([-9.0, 0.0, 9.0]).reshape(3, 1, 1)).ravel().tolist() == [0, 128, 255]


def test_a_read_only_picture_becomes_a_tensor_of_its_own(picture: np.ndarray) -> None:
    frozen = picture.copy()
    frozen.flags.writeable = False
    to_tensor(frozen).zero_()
    np.testing.assert_array_equal(frozen, picture)


def test_half_precision_becomes_bytes() -> None:
    assert to_uint8(torch.ones(3, 2, 2, dtype=torch.bfloat16)).max() == 255


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (3, 4, 4), (1, 1, 4, 4, 3)])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        to_tensor(np.zeros(shape, np.uint8))


def test_floats_at_the_door_are_refused() -> None:
    with pytest.raises(ShapeError, match="float64"):
        to_tensor(np.zeros((4, 4, 3)))
    with pytest.raises(ShapeError):
        to_uint8(torch.zeros(1, 4, 4))


def test_resizing_keeps_a_constant_and_the_type() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        out = resize(torch.full((2, 3, 16, 16), 0.5, dtype=dtype), (8, 4))
        torch.testing.assert_close(out, torch.full((2, 3, 8, 4), 0.5, dtype=dtype))


def test_resizing_to_half_averages_and_does_not_alias() -> None:
    """A pattern at the Nyquist frequency turns grey; without antialiasing one of its two values would win."""
    stripes = torch.ones(3, 32, 32)
    stripes[:, :, ::2] = -1
    out = resize(stripes, 8)
    assert out.shape == (3, 8, 8)
    assert out.abs().max() < 0.1


def test_resizing_keeps_the_centre_of_the_picture() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)
    small = resize(ramp, 16)
    torch.testing.assert_close(
        small[..., 2:-2], torch.linspace(-1, 1, 64).reshape(16, 4).mean(1).expand(1, 1, 16, 16)[..., 2:-2]
    )


def test_resizing_to_the_same_size_changes_nothing() -> None:
    image = torch.rand(1, 3, 8, 8)
    assert resize(image, 8) is image


# --- writing ---


def test_a_png_holds_what_was_written(picture: np.ndarray, tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", picture, {"Description": "größer"})
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture)
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Description"] == "größer"
    assert os.listdir(tmp_path) == ["a.png"]


def test_the_same_picture_gives_the_same_bytes(picture: np.ndarray, tmp_path: Path) -> None:
    for name in "ab":
        write_png(tmp_path / name, picture, {"b": "1", "a": "2"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_png_that_cannot_be_written_is_an_output_error(picture: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        write_png(tmp_path / "no" / "a.png", picture)


def test_only_uint8_pictures_are_written(tmp_path: Path) -> None:
    with pytest.raises(ShapeError):
        write_png(tmp_path / "a.png", np.zeros((4, 4, 3)))  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_a_contact_sheet_holds_every_picture_in_its_place(rng: np.random.Generator) -> None:
    rows = [[rng.integers(0, 200, (8, 10, 3), dtype=np.uint8) for _ in range(3)] for _ in range(2)]
    sheet = contact_sheet(rows, gap=2)
    assert sheet.shape == (2 * 8 + 3 * 2, 3 * 10 + 4 * 2, 3)
    for r, row in enumerate(rows):
        for c, cell in enumerate(row):
            np.testing.assert_array_equal(sheet[2 + r * 10 : 10 + r * 10, 2 + c * 12 : 12 + c * 12], cell)
    assert (sheet[:2] == 255).all()


def test_rows_of_a_contact_sheet_may_be_ragged() -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    sheet = contact_sheet([[black], [black[:4], black, black[:, :2]]], gap=1)
    assert sheet.shape == (8 + 8 + 3, 8 + 8 + 2 + 4, 3)
    assert (sheet == 0).all(axis=2).sum() == 64 + 32 + 64 + 16


def test_headings_stand_above_their_rows() -> None:
    grey = np.full((8, 80, 3), 128, np.uint8)
    sheet = contact_sheet([[grey], [grey]], labels=["source", "ours"])
    dark = (sheet < 100).all(axis=2).any(axis=1)
    assert dark[:18].any()
    assert dark[26:44].any()
    assert ((sheet == 128).all(axis=2).sum(axis=1) == 80).sum() == 16


def test_headings_may_stand_above_each_picture() -> None:
    grey = np.full((8, 80, 3), 128, np.uint8)
    sheet = contact_sheet([[grey, grey]], labels=[["", "own"]])
    dark = (sheet < 100).all(axis=2).any(axis=0)
    assert not dark[:88].any()
    assert dark[88:].any()


def test_an_empty_contact_sheet_is_refused() -> None:
    for rows in ([], [[]]):
        with pytest.raises(ShapeError, match="at least one"):
            contact_sheet(rows)


def test_an_image_is_scaled_down_to_a_height_and_never_up() -> None:
    image = np.full((300, 900, 3), 7, np.uint8)
    assert fitted(image, 100).shape == (100, 300, 3)
    assert (fitted(image, 100) == 7).all()
    assert fitted(image, 400) is image


# --- large images ---


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif"])
def test_a_reduced_image_shows_what_the_whole_one_shows(astronaut: np.ndarray, tmp_path: Path, suffix: str) -> None:
    """Pixel by pixel, by whichever way each kind of file is reduced; the rotation is still applied."""
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(astronaut[:256]).save(path, **({} if suffix == "gif" else {"exif": exif, "quality": 95}))
    whole, reduced = read_image(path), read_image(path, reduced_to=512 * 256 // 4)
    assert reduced.shape == (whole.shape[0] // 2, whole.shape[1] // 2, 3)
    if suffix == "gif":
        assert reduced.shape == (128, 256, 3)
        return
    means = whole.reshape(reduced.shape[0], 2, reduced.shape[1], 2, 3).mean((1, 3))
    assert np.abs(means - reduced).mean() < 1.5


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif"])
def test_an_image_a_little_too_large_is_reduced_a_little(astronaut: np.ndarray, tmp_path: Path, suffix: str) -> None:
    """A whole factor would leave a quarter of its pixels."""
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(astronaut).save(path)
    assert read_image(path, reduced_to=500 * 500).shape == (500, 500, 3)
    assert read_image(path, reduced_to=512 * 512).shape == (512, 512, 3)


def test_an_image_with_too_many_pixels_for_the_caller_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((100, 110, 3), np.uint8))
    with pytest.raises(BadImage, match=r"110 x 100, more than 0 megapixels; shrink it first"):
        read_image(tmp_path / "a.png", most_pixels=10_000)
