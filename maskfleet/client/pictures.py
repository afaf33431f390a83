"""Pictures in this process's memory: on their way to the server, and from it."""

from __future__ import annotations

import base64
import hashlib
import html
import io
from typing import TYPE_CHECKING, Any, Protocol

from maskfleet.client.packages import needed

if TYPE_CHECKING:
    from PIL.Image import Image

#: What the methods that need Pillow or NumPy ask for.
ARRAYS = "maskfleet[arrays]"
#: The longer side of a picture in a notebook, in pixels.
SHOWN_PX = 768
#: The modes of Pillow's images that PNG has, too.  Source: Pillow, "Image file formats", PNG.
_PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
_OTHER_COLOURS = frozenset({"CMYK", "YCbCr", "LAB", "HSV", "PA", "RGBa", "La", "RGBX"})


class PictureInMemory(Protocol):
    """A picture as an array or as Pillow's image: anything with NumPy's array interface.

    Arrays are (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of 8 bits, or (H, W) of 16 bits or of booleans.
    """

    @property
    def __array_interface__(self) -> dict[str, Any]: ...  # Any: NumPy's own description


def png_of(picture: PictureInMemory) -> bytes:
    """Return a picture as PNG, with the same pixels.  Raises TypeError for one that no PNG holds, MissingPackage."""
    pillow = needed("PIL.Image", ARRAYS, "Sending a picture from memory")
    image = picture if isinstance(picture, pillow.Image) else _image_of(picture)
    if image.mode in _OTHER_COLOURS:
        image = image.convert("RGBA" if image.mode in ("PA", "RGBa", "La") else "RGB")
    if image.mode not in _PNG_MODES:
        raise TypeError(
            f"A picture of Pillow's mode {image.mode!r} does not say which value is white. Convert it to 8 bits first: "
            'image.convert("RGB").'
        )
    written = io.BytesIO()
    # The pixels as they lie in memory: with its EXIF the picture might be turned on its way.
    image.save(written, "PNG", compress_level=1, exif=b"")
    return written.getvalue()


def pixels_digest(picture: PictureInMemory) -> str:
    """Return a word that is the same for the same pixels, without encoding them.  Raises MissingPackage."""
    numpy = needed("numpy", ARRAYS, "Sending a picture from memory")
    pixels = numpy.ascontiguousarray(numpy.asarray(picture))
    kind = f"{getattr(picture, 'mode', '')} {pixels.shape} {pixels.dtype}"
    return hashlib.sha256(kind.encode() + pixels.tobytes()).hexdigest()


def _image_of(array: PictureInMemory) -> Image:
    numpy = needed("numpy", ARRAYS, "Sending an array")
    pixels = numpy.asarray(array)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    kind = str(pixels.dtype)
    grey, colour = pixels.ndim == 2, pixels.ndim == 3 and pixels.shape[2] in (3, 4)
    if pixels.size and ((grey and kind in ("uint8", "uint16", "bool")) or (colour and kind == "uint8")):
        image: Image = needed("PIL.Image", ARRAYS, "Sending an array").fromarray(numpy.ascontiguousarray(pixels))
        return image
    shape = " × ".join(str(side) for side in pixels.shape)
    raise TypeError(
        f"An array of {shape or 'no'} {kind} is no picture. Give (H, W) or (H, W, 3) of uint8, in RGB; "
        "floats from 0 to 1 become that by (255 * array).astype('uint8')."
    )


def picture_of(data: bytes) -> Image:
    """Return a picture file as Pillow's image, read whole.  Raises MissingPackage."""
    image: Image = needed("PIL.Image", ARRAYS, "A picture as an image").open(io.BytesIO(data))
    image.load()
    return image


def figure(data: bytes, media_type: str, caption: str) -> str:
    """Return HTML with the picture in it, small enough for a notebook, and a caption, which is escaped."""
    try:
        image = picture_of(data)
    except ImportError:
        pass  # without Pillow it is shown as it is
    else:
        image.thumbnail((SHOWN_PX, SHOWN_PX))
        written = io.BytesIO()
        image.convert("RGB").save(written, "JPEG", quality=88)
        data, media_type = written.getvalue(), "image/jpeg"
    text = html.escape(caption)
    source = f"data:{html.escape(media_type)};base64,{base64.b64encode(data).decode()}"
    return (
        f'<figure style="margin:0"><img src="{source}" alt="{text}" style="max-width:100%">'
        f"<figcaption>{text}</figcaption></figure>"
    )
