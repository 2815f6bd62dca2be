"""Read one image file, into a sample or a thumbnail; whatever is wrong with it is an UnreadableSample that names it."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from sparsify import Sample, UnreadableSample

from sparsify_image_classification.pixels import centre_crop, preprocess, recolour

# PIL hands EPS to Ghostscript, a program that runs what is in the file; the others it can only identify, not decode
REFUSED = frozenset({"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"})
# what PIL's decoders raise on broken files, found by feeding them damaged ones (tests/image_classification)
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,  # a damaged length field asks for more than there is
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


SLIM = 16  # times longer than wide: of a longer strip only the middle is shown
COLOURS = 256  # of a thumbnail, which halves its bytes: 21 kB become 10 kB for a photo of 96 x 96


@dataclass(frozen=True)
class ImageReader:
    """Read the image of a key below `root` as the input called `name`; targets are class ids by key.

    fetch: gives the bytes of an image that is no file of its own; it can be pickled.
    """

    root: Path
    name: str
    description: Mapping[str, Any]
    targets: Mapping[str, int]
    fetch: Callable[[str], bytes] | None = None

    def open(self, key: str) -> AbstractContextManager[Image.Image]:
        """Open the image of a key for a `with` block; raises UnreadableSample."""
        return opened(self.root / key) if self.fetch is None else opened(self.fetch(key), self.root / key)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle: read-only mappings travel to other processes as plain ones."""
        return ImageReader, (self.root, self.name, dict(self.description), dict(self.targets), self.fetch)

    def __call__(self, key: str) -> Sample:
        """Read one sample; raises UnreadableSample."""
        with self.open(key) as image:
            tensor = preprocess(self.description, image)
        return Sample({self.name: tensor}, self.targets[key])

    def thumbnail(self, key: str, side: int) -> bytes:
        """Return the image as a PNG of at most `side` x `side` pixels, upright; raises UnreadableSample."""
        with self.open(key) as image:
            small = recolour(image, "RGB")
            longest = SLIM * min(small.size)
            small = centre_crop(small, min(small.height, longest), min(small.width, longest))
            small.thumbnail((side, side))
            file = io.BytesIO()
            small.quantize(COLOURS).save(file, "PNG", optimize=True)
        return file.getvalue()


@contextmanager
def opened(source: Path | bytes, place: Path | None = None) -> Iterator[Image.Image]:
    """Open an image file, or what one holds, for a `with` block; raises UnreadableSample for whatever is wrong.

    place: where the bytes lie, for the message.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns of odd metadata, a line an image
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as image:
                yield image
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        shown = place or (source if isinstance(source, Path) else None)
        if shown is None:
            problem = f"these {len(source)} bytes cannot be read as an image: {reason}"  # type: ignore[arg-type]
            raise UnreadableSample(problem, fix="give the bytes of a whole image file") from error
        problem = f"{shown} cannot be read as an image: {reason}"
        raise UnreadableSample(problem, fix="repair or remove the file") from error


def image_suffixes() -> frozenset[str]:
    """Name the file suffixes that PIL can open, in lower case."""
    return frozenset(
        suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN and name not in REFUSED
    )


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in REFUSED]
