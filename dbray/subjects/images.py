"""Photographs in, pixels out: decoding of untrusted files, checks, crops, encoding.

Owns the list of formats and the caps on bytes and pixels; every byte from outside is decoded here.
Knows neither where bytes come from nor what the pixels are for. Pillow and numpy only.
"""

from __future__ import annotations

import hashlib
import io
import re
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dbray.errors import SubjectError

MAX_IMAGE_BYTES = 64 * 1024 * 1024
MAX_IMAGE_PIXELS = 64 * 1024 * 1024

# Only these decoders are ever offered the bytes: most holes of image libraries are in rare formats.
FORMATS = ("PNG", "JPEG", "WEBP")
FORMAT_OF_SUFFIX = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
}
# How files begin: of the formats that are read, and of those that people send by mistake.
_BEGINNINGS = tuple(
    (kind, re.compile(beginning, re.DOTALL))
    for kind, beginning in (
        ("PNG", rb"\x89PNG\r\n\x1a\n"),
        ("JPEG", rb"\xff\xd8\xff"),
        ("WEBP", rb"RIFF....WEBP"),
        ("GIF", rb"GIF8"),
        ("BMP", rb"BM....\0\0\0\0"),
        ("TIFF", rb"II\*\0|MM\0\*"),
        ("HEIC", rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)"),
        ("AVIF", rb"....ftypavi[fs]"),
        ("PDF", rb"%PDF"),
        ("JPEG XL", rb"\0\0\0\x0cJXL |\xff\x0a"),
    )
)
BEGINNING_BYTES = 16
"""As many bytes identify the format of a file."""


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """What is known of an image that decodes: its size in pixels when upright, and its two digests.

    `digest` is the hex SHA-256 of the file, `perceptual` a 64-bit difference hash of the picture.
    """

    width: int
    height: int
    digest: str
    perceptual: int


def decode(data: bytes, name: str) -> Image.Image:
    """Decode a PNG, JPEG or WebP file to RGB as a person sees it.

    EXIF orientation is applied, transparent pixels are laid on white, an animation gives its first
    frame, 16 bits become 8, and no metadata (place, camera) is kept.

    Raises:
        SubjectError: f"{name}: reason". The caps are checked before any pixel is decoded.
    """
    if not data:
        raise SubjectError(f"{name}: is empty (0 bytes)")
    if len(data) > MAX_IMAGE_BYTES:
        raise SubjectError(f"{name}: is larger than {MAX_IMAGE_BYTES >> 20} MiB")
    with _open(data, name) as image:
        width, height = image.size
        if width * height > MAX_IMAGE_PIXELS:
            raise SubjectError(
                f"{name}: has {width} x {height} pixels, more than {MAX_IMAGE_PIXELS >> 20} million"
            )
        try:
            image.load()
            return _to_rgb(image)
        except Exception as exc:  # whatever a decoder raises on hostile bytes
            raise SubjectError(f"{name}: is damaged or incomplete ({exc})") from exc


def _open(data: bytes, name: str) -> Image.Image:
    """Read the header only."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as exc:
        raise SubjectError(f"{name}: {_what_instead(data)}") from exc
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise SubjectError(
            f"{name}: claims to have more than {MAX_IMAGE_PIXELS >> 20} million pixels"
        ) from exc
    except Exception as exc:  # whatever a decoder raises on hostile bytes
        raise SubjectError(f"{name}: is damaged or incomplete ({exc})") from exc


def _what_instead(data: bytes) -> str:
    """Say what the bytes are that no decoder accepts."""
    kind = format_of(data)
    if kind in FORMATS:
        return "is damaged or incomplete (its header cannot be read)"
    if kind is not None:
        return f"is a {kind} file; convert it to PNG, JPEG or WebP"
    return "is not a PNG, JPEG or WebP image"


def format_of(beginning: bytes) -> str | None:
    """Name the format of a file by its first bytes, whether or not dbray reads it."""
    return next((kind for kind, form in _BEGINNINGS if form.match(beginning)), None)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB on white, without metadata."""
    _turn_upright(image)
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255; the upper byte is the picture.
        grey = np.asarray(image).astype(np.int64) >> 8
        rgb = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        rgb = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        rgb.alpha_composite(rgba)
        rgb = rgb.convert("RGB")
    else:
        rgb = image.convert("RGB")
    rgb.info.clear()
    return rgb


def _turn_upright(image: Image.Image) -> None:
    """Apply the EXIF orientation. A broken EXIF block is no reason to refuse the picture."""
    with suppress(Exception):  # in place, so that an error in what follows the turn keeps the turn
        ImageOps.exif_transpose(image, in_place=True)


def check(data: bytes, name: str) -> ImageCheck:
    """Decode an image fully and measure it. Raises SubjectError as `decode` does."""
    image = decode(data, name)
    return ImageCheck(
        width=image.width,
        height=image.height,
        digest=hashlib.sha256(data).hexdigest(),
        perceptual=_difference_hash(image),
    )


def _difference_hash(image: Image.Image) -> int:
    """64 bits: is each of 8 x 8 patches brighter than its right neighbour?

    Survives scaling, recompression and small edits of colour; two photographs of one thing differ
    in about half of the bits.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    bits = np.packbits((grey[:, :-1] > grey[:, 1:]).reshape(-1))
    return int.from_bytes(bits.tobytes(), "big")


def perceptual_distance(a: int, b: int) -> int:
    """Count the bits (0 to 64) in which two difference hashes differ."""
    return (a ^ b).bit_count()


def views(image: Image.Image, resolution: int, crop: str) -> list[np.ndarray]:
    """Cut the squares that training may see, as uint8 HWC of resolution x resolution.

    'centre' gives one; 'random' gives up to three along the longer side (start, centre, end), one
    of which is drawn per step.
    """
    side = min(image.size)
    slack = max(image.size) - side
    if crop == "centre":
        offsets = [slack // 2]
    elif crop == "random":
        offsets = sorted({0, slack // 2, slack})
    else:
        raise ValueError(f"crop is 'centre' or 'random', not {crop!r}")
    squares = []
    for offset in offsets:
        left, top = (offset, 0) if image.width >= image.height else (0, offset)
        # Cut before scaling: the other way round a thin strip would grow to gigabytes.
        square = image.crop((left, top, left + side, top + side)).convert("RGB")
        square = square.resize((resolution, resolution), Image.Resampling.LANCZOS)
        squares.append(np.array(square, dtype=np.uint8))
    return squares


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 HWC RGB pixels without loss."""
    return _encode(pixels, "PNG")


def decode_png(data: bytes) -> np.ndarray:
    """Decode an image to writable uint8 HWC. Raises SubjectError."""
    return np.array(decode(data, "image"), dtype=np.uint8)


def encode_webp(pixels: np.ndarray, quality: int = 80, size: int | None = None) -> bytes:
    """Encode uint8 HWC RGB pixels with loss; `size` caps the longer side in pixels."""
    return _encode(pixels, "WEBP", size, quality=quality, method=4)


def _encode(pixels: np.ndarray, file_format: str, size: int | None = None, **options: int) -> bytes:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels are uint8 HWC with 3 channels, not {pixels.dtype} {pixels.shape}")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if size is not None:
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
