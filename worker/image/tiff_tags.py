"""What a TIFF's tags say about its pixels, and whether that is something to decode.

Sources: TIFF 6.0; TIFF Technical Notes (SampleFormat, ExtraSamples); TIFF/EP and DNG for camera raws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tifffile import COMPRESSION, PHOTOMETRIC, TiffPage

from maskfleet.jobs.errors import InvalidImage
from maskfleet.worker.image.colours import Colours, Model, YCbCr
from maskfleet.worker.image.values import Depth, Pixels

#: Tags.
_PHOTOMETRIC, _ORIENTATION, _INK_SET, _EXTRA_SAMPLES, _COLOUR_MAP = 262, 274, 332, 338, 320
_LUMA, _BLACK_WHITE, _GDAL_NO_DATA, _LERC = 529, 532, 42113, 50674
#: PhotometricInterpretation.
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _MASK, _CMYK, _YCBCR = range(7)
_GREYS = (_MIN_IS_WHITE, _MIN_IS_BLACK, _MASK)
_RAW = (32803, 34892)
_MODELS = {
    **dict.fromkeys(_GREYS, Model.GREY),
    _RGB: Model.RGB,
    _PALETTE: Model.PALETTE,
    _CMYK: Model.CMYK,
    _YCBCR: Model.YCBCR,
}
#: Samples of a pixel that are its colour.
_COLOURS = {Model.GREY: 1, Model.RGB: 3, Model.PALETTE: 1, Model.CMYK: 4, Model.YCBCR: 3}
#: ExtraSamples: opacity, already multiplied into the colours, and not.
_ASSOCIATED, _UNASSOCIATED = 1, 2
#: SampleFormat, as numpy's kinds; 4 is "undefined".
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
_CCITT, _LZW, _OLD_JPEG, _JPEG = (2, 3, 4), 5, 6, 7
_DEFLATE, _PACKBITS, _LZMA, _ZSTD, _WEBP = (8, 32946), 32773, 34925, (34926, 50000), 50001
_JPEG_2000, _LERC_COMPRESSION, _JPEG_XL = 34712, 34887, 50002
#: What is decoded: what libtiff and GDAL write.
_COMPRESSIONS = (
    1, *_CCITT, _LZW, _JPEG, *_DEFLATE, _PACKBITS, _LZMA, *_ZSTD, _WEBP, _JPEG_2000, _LERC_COMPRESSION, _JPEG_XL,
)  # fmt: skip
#: Their decoders return RGB, whatever it is stored as.
_WITH_OWN_COLOURS = (_JPEG, _WEBP, _JPEG_2000, _JPEG_XL)
#: Depths for which a predictor is defined.
_PREDICTED_BITS = {2: (8, 16, 32, 64), 3: (16, 32, 64)}
_IN_RGB = "Save it in RGB, as TIFF, PNG or JPEG."


def check_supported(page: TiffPage, data: bytes) -> None:
    """Raise InvalidImage (``image_unsupported``) for pixels that are no picture yet, or that nothing here decodes."""
    photometric = photometric_of(page)
    if photometric in _RAW or data[8:10] == b"CR":
        raise _unsupported("is a camera raw (DNG, CR2, NEF, …), not yet a picture", "Export it as TIFF or JPEG.")
    if photometric not in _MODELS:
        raise _unsupported(f"has colours of the kind {_name(PHOTOMETRIC, photometric)}", _IN_RGB)
    if page.compression not in _COMPRESSIONS:
        raise _unsupported(f"is compressed with {_name(COMPRESSION, page.compression)}")
    if page.compression == _LERC_COMPRESSION and np.ravel(page.tags.valueof(_LERC, (0, 0)))[-1]:
        raise _unsupported("is compressed with LERC and another method")
    if page.imagedepth != 1 or page.tiledepth > 1:
        raise _unsupported("holds a volume", "Save the slice that you need as a picture.")
    _check_samples(page, photometric)


def _check_samples(page: TiffPage, photometric: int) -> None:
    # tifffile gives a tuple where samples differ.
    bits: int | tuple[int, ...] = page.bitspersample
    form = page.sampleformat
    model, count = _MODELS[photometric], whole_number(page.samplesperpixel)
    if not isinstance(bits, int):
        raise _unsupported(f"has samples of different depths, {bits}")
    if form not in _KINDS:
        raise _unsupported("has complex numbers for pixels" if form in (5, 6) else "has samples of an unknown format")
    if page.dtype is None or (bits > 16 and bits not in (32, 64)):
        what = {"f": "floating-point", "i": "signed"}.get(_KINDS[form], "unsigned")
        raise _unsupported(f"has {what} samples of {bits} bits")
    if count < _COLOURS[model]:
        raise _unsupported(f"has {count} samples for each pixel, where {model.value} needs {_COLOURS[model]}")
    if model is Model.CMYK and whole_number(page.tags.valueof(_INK_SET, 1)) != 1:
        raise _unsupported("has inks other than cyan, magenta, yellow and black", _IN_RGB)
    if model in (Model.CMYK, Model.PALETTE) and _KINDS[form] != "u":
        raise _unsupported(f"has {model.value} samples that are not unsigned integers")
    if model is Model.PALETTE and bits > 16:
        raise _unsupported(f"has a palette for samples of {bits} bits")
    if model is Model.YCBCR and (bits != 8 or _KINDS[form] != "u"):
        raise _unsupported("has YCbCr colours of other than 8 bits", _IN_RGB)
    if is_subsampled(page) and (page.planarconfig != 1 or count != 3 or page.predictor != 1):
        raise _unsupported("has YCbCr colours in planes, or with a predictor", _IN_RGB)
    allowed = _PREDICTED_BITS.get(page.predictor)
    is_float = _KINDS[form] == "f"
    if page.predictor != 1 and (allowed is None or bits not in allowed or (page.predictor == 3 and not is_float)):
        raise _unsupported(f"has predictor {int(page.predictor)} for samples of {bits} bits")


def colours_of(page: TiffPage) -> Colours:
    """Return how the samples of a supported image become colours."""
    photometric = photometric_of(page)
    model, count = _MODELS[photometric], page.samplesperpixel
    if model is Model.YCBCR and _decodes_to_rgb(page):
        model = Model.RGB
    extra = _extra_samples(page)
    alpha = next(
        (count - len(extra) + at for at, kind in enumerate(extra) if kind in (_ASSOCIATED, _UNASSOCIATED)), None
    )
    shown = tuple(range(_COLOURS[model]))
    if model is Model.RGB and count == 4 and not extra and page.tags.valueof(_EXTRA_SAMPLES) is None:
        alpha = 3  # the tag was forgotten
    if model is Model.GREY:
        # GDAL, and all that writes with it, calls bands grey that are red, green and blue.
        bands = tuple(sample for sample in range(count) if sample != alpha)
        if len(bands) >= 3:
            model, shown = Model.RGB, bands[:3]
    if alpha in shown:
        alpha = None
    bits = whole_number(page.bitspersample)
    return Colours(
        model,
        Depth(bits, _KINDS[page.sampleformat], no_data_of(page)),
        shown,
        alpha=alpha,
        premultiplied=alpha is not None and _ASSOCIATED in extra and _UNASSOCIATED not in extra,
        inverted=photometric == _MIN_IS_WHITE,
        palette=_palette(page, bits) if model is Model.PALETTE else None,
        ycbcr=_ycbcr(page) if model is Model.YCBCR else YCbCr(),
    )


def photometric_of(page: TiffPage) -> int:
    """Return how samples are to be read; without the tag as libtiff guesses."""
    if page.tags.valueof(_PHOTOMETRIC) is None and page.photometric != _YCBCR:
        return _RGB if page.samplesperpixel >= 3 else _MIN_IS_BLACK
    return whole_number(page.photometric)


def orientation_of(page: TiffPage, first: TiffPage) -> int:
    """Return the orientation, 1 to 8.  first: the file's first directory, which speaks for those below it."""
    for holder in (page, first):
        orientation = holder.tags.valueof(_ORIENTATION)
        if isinstance(orientation, int) and orientation in range(1, 9):
            return int(orientation)
    return 1


def no_data_of(page: TiffPage) -> float | None:
    """Return the value that GDAL writes where there is no data; None if there is none."""
    text = page.tags.valueof(_GDAL_NO_DATA)
    try:
        return float(str(text).replace(",", ".")) if text is not None else None
    except ValueError:
        return None


def is_subsampled(page: TiffPage) -> bool:
    """Return whether chroma is stored once for several pixels, other than inside a JPEG."""
    return photometric_of(page) == _YCBCR and not _decodes_to_rgb(page) and bool(page.is_subsampled)


def whole_number(value: Any) -> int:  # Any: whatever a tag holds
    """Return a tag's single number; raises ValueError for anything else."""
    if not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"not a whole number: {value!r:.50}")
    return int(value)


def _decodes_to_rgb(page: TiffPage) -> bool:
    return page.compression in _WITH_OWN_COLOURS and page.planarconfig == 1


def _extra_samples(page: TiffPage) -> tuple[int, ...]:
    extra = page.tags.valueof(_EXTRA_SAMPLES)
    kinds = tuple(int(kind) for kind in np.ravel(extra)) if extra is not None else ()
    return kinds[: max(0, page.samplesperpixel - 1)]


def _palette(page: TiffPage, bits: int) -> Pixels:
    """Return the colour of each index.  Some writers give it 8 bits instead of 16; libtiff accepts that, too."""
    colours = np.ravel(np.array(page.tags.valueof(_COLOUR_MAP), np.int64))
    if colours.size != 3 * 2**bits:
        raise ValueError("the colour map has another length than the samples' depth needs")
    return (colours if colours.max() < 256 else colours >> 8).reshape(3, -1).T.astype(np.uint8)


def _ycbcr(page: TiffPage) -> YCbCr:
    return YCbCr(
        _rationals(page.tags.valueof(_LUMA), 3) or YCbCr().luma,
        _rationals(page.tags.valueof(_BLACK_WHITE), 6) or YCbCr().black_white,
    )


def _rationals(value: Any, count: int) -> tuple[float, ...]:  # Any: as tifffile reads it
    numbers = np.ravel(value).astype(np.float64) if value is not None else np.empty(0)
    if numbers.size != 2 * count or not numbers[1::2].all():
        return ()
    return tuple((numbers[0::2] / numbers[1::2]).tolist())


def _name(names: Any, value: int) -> str:  # Any: an enumeration of tifffile's
    try:
        return f"{names(value).name} ({int(value)})"
    except ValueError:
        return str(value)


def _unsupported(what: str, advice: str = "Save it as a plain TIFF, PNG or JPEG.") -> InvalidImage:
    return InvalidImage("image_unsupported", f"The TIFF file {what}; that is not supported. {advice}")
