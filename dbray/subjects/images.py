"""Photographs to pixels: decoding of untrusted files, checks, crops, encoding.

Owns the list of formats and the caps on bytes and pixels; all untrusted bytes are decoded here.
Does not know where bytes come from or what the pixels are for. Pillow and numpy only.
"""

from __future__ import annotations

import hashlib
import io
import re
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from dbray.errors import SubjectError
from dbray.subjects.looks import Look, difference_hash, look_at

MAX_IMAGE_BYTES = 64 * 1024 * 1024
MAX_IMAGE_PIXELS = 64 * 1024 * 1024

# Only these decoders see the bytes: most vulnerabilities of image libraries are in rare formats.
FORMATS = ("PNG", "JPEG", "WEBP")
FORMAT_OF_SUFFIX = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
}
# The first bytes of files: of the formats that are read, and of those that users send by mistake.
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
_ROUNDING = 2
"""Levels of 255 by which two equal pictures may differ."""
BEGINNING_BYTES = 16
"""This many bytes identify the format of a file."""


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """Facts about an image that decodes: its size in pixels when upright, and its two digests.

    `digest` is the hex SHA-256 of the file, `perceptual` a 64-bit difference hash of the picture.
    """

    width: int
    height: int
    digest: str
    perceptual: int
    decoding: int = 1
    """2 if the first version of dbray gave other pixels: then it is part of the fingerprint."""
    blank: str | None = None
    """Why the picture shows nothing; None if it shows something."""
    look: Look = field(kw_only=True)
    """How its middle square looks."""


@dataclass(frozen=True, slots=True)
class _Decoded:
    image: Image.Image
    decoding: int
    is_transparent: bool
    """Whether every pixel is fully transparent."""


def decode(data: bytes, name: str) -> Image.Image:
    """Decode a PNG, JPEG or WebP file to upright RGB.

    EXIF orientation is applied, colours are converted from an embedded profile to sRGB, transparent
    pixels are drawn on white, an animation gives its first frame, 16 bits become 8, and metadata
    (place, camera) is dropped.

    Raises:
        SubjectError: f"{name}: reason". The caps are checked before any pixel is decoded.
    """
    return _decode(data, name).image


def _decode(data: bytes, name: str) -> _Decoded:
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
        except Exception as exc:  # a decoder can raise anything on hostile bytes
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
    except Exception as exc:  # a decoder can raise anything on hostile bytes
        raise SubjectError(f"{name}: is damaged or incomplete ({exc})") from exc


def _what_instead(data: bytes) -> str:
    """Describe the bytes that no decoder accepts."""
    kind = format_of(data)
    if kind in FORMATS:
        return "is damaged or incomplete (its header cannot be read)"
    if kind is not None:
        return f"is a {kind} file; convert it to PNG, JPEG or WebP"
    return "is not a PNG, JPEG or WebP image"


def format_of(beginning: bytes) -> str | None:
    """Return the format of a file by its first bytes, also for formats that dbray does not read."""
    return next((kind for kind, form in _BEGINNINGS if form.match(beginning)), None)


def _to_rgb(image: Image.Image) -> _Decoded:
    """Convert to upright 8-bit sRGB on white, without metadata."""
    _turn_upright(image)
    if image.mode.startswith("I"):
        decoded = _from_16_bits(image)
    else:
        managed = _managed(image)
        rgb, is_transparent = managed or image, False
        if image.has_transparency_data:
            alpha = image.convert("RGBA").getchannel("A")
            is_transparent = alpha.getextrema()[1] == 0
            rgb = _on_white(rgb, alpha)
        decoded = _Decoded(rgb.convert("RGB"), 1 if managed is None else 2, is_transparent)
    decoded.image.info.clear()
    return decoded


def _from_16_bits(image: Image.Image) -> _Decoded:
    """Keep the upper byte: Pillow would clip 16-bit grey at 255."""
    values = np.asarray(image).astype(np.int64)
    grey = np.clip(values >> 8, 0, 255).astype(np.uint8)
    clear = values == image.info.get("transparency", -1)
    grey[clear] = 255
    decoding = 2 if clear.any() else 1
    return _Decoded(Image.fromarray(grey).convert("RGB"), decoding, bool(clear.all()))


def _on_white(image: Image.Image, alpha: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    rgba.putalpha(alpha)
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    white.alpha_composite(rgba)
    return white


def _managed(image: Image.Image) -> Image.Image | None:
    """Convert colours from the embedded profile to sRGB; None without one, or if it is sRGB."""
    profile_bytes = image.info.get("icc_profile")
    if not profile_bytes:
        return None
    with suppress(Exception):  # a broken profile does not make the picture unusable
        profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[profile.profile.xcolor_space.strip()]  # pyright: ignore[reportAttributeAccessIssue]
        if mode not in (image.mode, image.mode.removesuffix("A")) and image.mode != "P":
            return None  # a profile of something else
        transform = ImageCms.buildTransform(
            profile, ImageCms.createProfile("sRGB"), mode, "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
        if mode == "CMYK" or _moves_colours(transform, mode):
            return ImageCms.applyTransform(image.convert(mode), transform)
    return None


def _moves_colours(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether any colour moves by more than rounding; cameras' sRGB profiles move none."""
    steps = np.linspace(0, 255, 9 if mode == "RGB" else 256).astype(np.uint8)
    axes = np.meshgrid(*[steps] * (3 if mode == "RGB" else 1), indexing="ij")
    colours = np.stack(axes, axis=-1).reshape(1, -1, len(axes))
    sample = Image.fromarray(colours if mode == "RGB" else colours[..., 0])
    moved = ImageCms.applyTransform(sample, transform)
    assert moved is not None
    difference = np.asarray(moved, dtype=int) - np.asarray(sample.convert("RGB"), dtype=int)
    return int(np.abs(difference).max()) > _ROUNDING


def _turn_upright(image: Image.Image) -> None:
    """Apply the EXIF orientation. A broken EXIF block is ignored."""
    with suppress(Exception):  # in place, so that an error in what follows the turn keeps the turn
        ImageOps.exif_transpose(image, in_place=True)


def check(data: bytes, name: str) -> ImageCheck:
    """Decode an image fully and measure it. Raises SubjectError as `decode` does."""
    decoded = _decode(data, name)
    image = decoded.image
    return ImageCheck(
        width=image.width,
        height=image.height,
        digest=hashlib.sha256(data).hexdigest(),
        perceptual=difference_hash(image),
        decoding=decoded.decoding,
        blank=_blank(decoded),
        look=look_at(image),
    )


def _blank(decoded: _Decoded) -> str | None:
    if decoded.is_transparent:
        return "fully transparent"
    spread = max(high - low for low, high in decoded.image.getextrema())  # pyright: ignore
    return "blank, of one colour" if spread <= _ROUNDING else None


def views(image: Image.Image, resolution: int, crop: str) -> list[np.ndarray]:
    """Cut the square crops used in training, as uint8 HWC of resolution x resolution.

    'centre' gives one; 'random' gives up to three along the longer side (start, centre, end), of
    which training draws one per step.
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
        # Crop before scaling: otherwise a thin strip would grow to gigabytes.
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
