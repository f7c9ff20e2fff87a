"""Untrusted files become the right pixels, or a SubjectError with the reason."""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from kit.profiles import DISPLAY_P3, rgb_profile
from PIL import Image, ImageCms

from dbray.errors import SubjectError
from dbray.subjects import images, looks

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def photo(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """A smooth picture, different for each seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def quarters() -> Image.Image:
    """Red, green over blue, white: different for every rotation and reflection. 40 x 20."""
    image = Image.new("RGB", (40, 20))
    for colour, corner in ((RED, (0, 0)), (GREEN, (20, 0)), (BLUE, (0, 10)), (WHITE, (20, 10))):
        image.paste(colour, (*corner, corner[0] + 20, corner[1] + 10))
    return image


def png_header(width: int, height: int) -> bytes:
    """Return a PNG with a valid header, and a few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_all_three_formats_decode_to_the_same_picture(file_format):
    original = photo()
    decoded = images.decode(encoded(original, file_format), "a")
    assert decoded.mode == "RGB"
    assert decoded.size == (96, 64)
    difference = np.abs(np.asarray(decoded, dtype=int) - np.asarray(original, dtype=int))
    assert difference.mean() < (0.01 if file_format == "PNG" else 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = quarters()
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = images.decode(encoded(stored, exif=exif), "a")
    assert decoded.size == (40, 20)
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(upright))


def test_an_image_with_broken_exif_is_read():
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 30)
    assert images.decode(data, "a").size == (96, 64)


def test_metadata_is_not_kept():
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    decoded = images.decode(encoded(photo(), "JPEG", exif=exif, comment=b"where I live"), "a")
    assert not decoded.info
    assert b"camera" not in encoded(decoded, "JPEG")


def test_transparent_pixels_become_white():
    image = Image.new("RGBA", (10, 10), (255, 0, 0, 128))
    image.putpixel((0, 0), (0, 0, 0, 0))
    decoded = images.decode(encoded(image), "a")
    assert decoded.getpixel((0, 0)) == WHITE
    assert decoded.getpixel((5, 5)) == (255, 127, 127)


def test_a_transparent_palette_colour_becomes_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    decoded = images.decode(encoded(image, transparency=0), "a")
    assert decoded.getpixel((0, 0)) == WHITE
    assert decoded.getpixel((1, 1)) == BLUE


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_modes_become_rgb(mode):
    decoded = images.decode(encoded(photo().convert(mode)), "a")
    assert decoded.mode == "RGB"
    assert np.asarray(decoded).std() > 10


def test_sixteen_bit_grey_keeps_its_tones():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256).repeat(4, axis=0)
    pixels = np.asarray(images.decode(encoded(Image.fromarray(ramp)), "a"))
    np.testing.assert_allclose(pixels[0, :, 0], np.arange(256), atol=1)


def test_a_cmyk_jpeg_is_converted():
    decoded = images.decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), "a")
    red, green, blue = decoded.getpixel((4, 4))
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(file_format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], lossless=True)
    assert images.decode(data, "a").getpixel((8, 8)) == RED


def test_a_multi_picture_jpeg_gives_its_first_picture():
    data = encoded(Image.new("RGB", (16, 16), RED), "MPO", save_all=True, append_images=[photo()])
    assert data[:2] == b"\xff\xd8"
    assert images.decode(data, "a").size == (16, 16)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not a PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG, JPEG or WebP"),
        (encoded(photo(), "GIF"), "GIF file"),
        (encoded(photo(), "BMP"), "BMP file"),
        (encoded(photo(), "TIFF"), "TIFF file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC file"),
        (b"\xff\xd8\xff\xe0", "damaged or incomplete"),
        (b"\x89PNG\r\n\x1a\n", "damaged or incomplete"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "damaged or incomplete"),
        (png_header(0, 5), "damaged or incomplete|no pixels"),
        (png_header(100, 100), "damaged or incomplete"),
    ],
    ids=lambda value: value[:12].hex() if isinstance(value, bytes) else value,
)
def test_a_file_that_is_not_an_image_is_reported_with_the_reason(data, reason):
    with pytest.raises(SubjectError, match=rf"^some/rex\.jpg: .*({reason})"):
        images.decode(data, "some/rex.jpg")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.95])
def test_truncated_files_are_rejected(file_format, kept):
    data = encoded(photo(200, 160), file_format)
    with pytest.raises(SubjectError, match=r"^a: is (damaged|not a PNG)"):
        images.decode(data[: int(len(data) * kept)], "a")


def test_flipped_bytes_raise_only_subject_errors():
    rng = np.random.default_rng(0)
    for file_format in ("PNG", "JPEG", "WEBP"):
        original = encoded(photo(), file_format)
        for _ in range(200):
            data = bytearray(original)
            for position in rng.integers(0, len(data), size=4):
                data[position] = rng.integers(0, 256)
            with contextlib.suppress(SubjectError):
                assert images.decode(bytes(data), "a").mode == "RGB"


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (9_500, 10_000), (8_000, 8_400)])
def test_pixel_bombs_are_rejected_by_their_header(width, height, monkeypatch):
    def load(self):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(SubjectError, match="more than 64 million"):
        images.decode(png_header(width, height), "bomb.png")


def test_the_byte_cap_is_checked_before_opening(monkeypatch):
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 1000)
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("was opened"))
    with pytest.raises(SubjectError, match="larger than"):
        images.decode(b"\x89PNG" + b"\0" * 1000, "a")


def test_check_measures_the_upright_image_and_the_file():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(96, 64), "JPEG", exif=exif)
    check = images.check(data, "a")
    assert (check.width, check.height) == (64, 96)
    assert check.digest == hashlib.sha256(data).hexdigest()
    assert 0 <= check.perceptual < 2**64


def test_the_perceptual_digest_is_equal_for_copies_only():
    original = photo(300, 200, seed=1)
    first = images.check(encoded(original), "a").perceptual
    for copy in (
        encoded(original, "JPEG", quality=60),
        encoded(original.resize((150, 100))),
        encoded(original.point(lambda value: int(value * 0.8))),
    ):
        assert looks.perceptual_distance(first, images.check(copy, "a").perceptual) <= 3
    others = [images.check(encoded(photo(300, 200, seed=s)), "a").perceptual for s in range(2, 12)]
    assert min(looks.perceptual_distance(first, other) for other in others) > 12
    assert looks.perceptual_distance(0b1011, 0b0010) == 2


def test_centre_view_is_the_middle_square():
    image = Image.new("RGB", (60, 20))
    for index, colour in enumerate((RED, GREEN, BLUE)):
        image.paste(colour, (index * 20, 0, index * 20 + 20, 20))
    [view] = images.views(image, 32, "centre")
    assert view.shape == (32, 32, 3)
    assert view.dtype == np.uint8
    assert (view == GREEN).all()


@pytest.mark.parametrize("upright", [False, True])
def test_random_views_are_start_centre_and_end(upright):
    image = Image.new("RGB", (60, 20))
    for index, colour in enumerate((RED, GREEN, BLUE)):
        image.paste(colour, (index * 20, 0, index * 20 + 20, 20))
    if upright:
        image = image.transpose(Image.Transpose.ROTATE_270)
    views = images.views(image, 16, "random")
    assert [tuple(view[8, 8]) for view in views] == [RED, GREEN, BLUE]
    assert all((view == view[0, 0]).all() for view in views)


def test_views_of_thin_strips_are_squares():
    assert len(images.views(photo(50, 50), 32, "random")) == 1
    assert len(images.views(photo(51, 50), 32, "random")) == 2
    thin = Image.new("RGB", (20_000, 1), RED)
    for view in images.views(thin, 64, "random"):
        assert view.shape == (64, 64, 3)
        assert (view == RED).all()
    with pytest.raises(ValueError, match="centre"):
        images.views(photo(), 32, "middle")


def test_png_round_trip_is_exact_and_writable():
    pixels = np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8)
    data = images.encode_png(pixels[:, ::-1])
    decoded = images.decode_png(data)
    np.testing.assert_array_equal(decoded, pixels[:, ::-1])
    decoded[0, 0] = 0
    assert images.encode_png(pixels[:, ::-1]) == data
    with pytest.raises(SubjectError):
        images.decode_png(data[:40])


def test_webp_thumbnails_are_small_and_keep_proportions():
    pixels = np.asarray(photo(400, 200))
    full, small = images.encode_webp(pixels), images.encode_webp(pixels, size=64)
    assert images.decode(full, "a").size == (400, 200)
    assert images.decode(small, "a").size == (64, 32)
    assert len(small) < len(full)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (8, 8, 1)])
def test_only_rgb_pixels_are_encoded(shape):
    with pytest.raises(ValueError, match="HWC"):
        images.encode_png(np.zeros(shape, dtype=np.uint8))
    with pytest.raises(ValueError, match="HWC"):
        images.encode_png(np.zeros((8, 8, 3), dtype=np.float32))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_display_p3_colours_become_srgb(mode, file_format):
    """The red of Display P3 is outside sRGB; its (200, 80, 60) is a stronger red there."""
    image = Image.new("RGB", (8, 8), (200, 80, 60)).convert(mode)
    data = encoded(image, file_format, icc_profile=rgb_profile(DISPLAY_P3), lossless=True)
    red, green, blue = images.decode(data, "a").getpixel((4, 4))
    assert red > 208
    assert green < 76
    assert blue < 60
    assert images.check(data, "a").decoding == 2


def test_srgb_profiles_do_not_change_pixels():
    plain = encoded(photo())
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (own, b"not a profile", b""):
        data = encoded(photo(), icc_profile=profile)
        assert images.decode(data, "a").tobytes() == images.decode(plain, "a").tobytes()
        assert images.check(data, "a").decoding == 1


def test_transparent_16_bit_grey_becomes_white():
    values = np.full((4, 4), 20_000, dtype=np.uint16)
    values[0, 0] = 5_000
    data = encoded(Image.fromarray(values), transparency=5_000)
    decoded = images.decode(data, "a")
    assert decoded.getpixel((0, 0)) == WHITE
    assert decoded.getpixel((1, 1)) == (78, 78, 78)
    assert images.check(data, "a").decoding == 2


def test_blank_pictures_are_reported():
    assert images.check(encoded(photo()), "a").blank is None
    assert images.check(encoded(Image.new("RGB", (9, 9), RED)), "a").blank == "blank, of one colour"
    clear = photo().convert("RGBA")
    clear.putalpha(0)
    assert images.check(encoded(clear), "a").blank == "fully transparent"
