"""Decoding of image files of many kinds: upright, 8 bits in each channel, of one size."""
import contextlib
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

from kdih import errors

MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}  # PIL's modes by the number of channels.
_NAMED = 10  # The number of files that a line names.


class UnreadableImagesError(errors.DataError):
  """Image files of a folder cannot be read; the message counts all and names the first ten.

  Args:
    faults: what is wrong with each file, from `fault`, by its path.
  """

  def __init__(self, faults: Mapping[pathlib.Path, str]):
    self.faults = faults
    by_fault: dict[str, list[str]] = {}
    for path in sorted(faults):
      by_fault.setdefault(faults[path], []).append(str(path))
    parts = [names[0] + f' is {reason}' if len(names) == 1 else
             f'{len(names):,} files are {reason}: ' + ', '.join(
                 names[:_NAMED] + ['...'] * (len(names) > _NAMED))
             for reason, names in by_fault.items()]
    them = 'it' if len(faults) == 1 else 'them'
    super().__init__(f'config.data.folder: {"; ".join(parts)}; replace or remove {them}')


def fault(error: Exception) -> str:
  """Returns what is wrong with an image file, by the error that was raised when it was decoded."""
  if isinstance(error, PIL.Image.DecompressionBombError):
    limit = 2 * (PIL.Image.MAX_IMAGE_PIXELS or 0)  # PIL warns above, and refuses above twice it.
    return f'larger than {limit:,} pixels, the limit for an image'
  return 'damaged or no image'


def read_size(path: pathlib.Path) -> tuple[int, int]:
  """Reads height and width in pixels of the upright image, from the file's header.

  Raises:
    OSError: the file cannot be opened or read.
    Exception: of many kinds, if the file is no image.
  """
  with path.open('rb') as file, _opened(file) as image:
    turned = _orientation(image) in (5, 6, 7, 8)  # These swap height and width.
    return image.size if turned else image.size[::-1]


def decode(content: bytes, channels: int) -> np.ndarray:
  """Decodes an image file, whatever its kind, to uint8 [height, width, channels].

  A missing colour repeats the grey level, and a missing alpha channel is opaque; colours are
  converted to grey, and an alpha channel is dropped, if `channels` leaves no room for them.

  Raises:
    Exception: of many kinds, if the content is damaged or no image.
  """
  with _opened(io.BytesIO(content)) as image:
    pixels = _to_mode(image, MODES[channels])
  return pixels.reshape(*pixels.shape[:2], channels)


def decode_upright(content: bytes) -> np.ndarray:
  """Decodes an image file to uint8 RGB [height, width, 3], turned by its EXIF orientation.

  Grey levels (16 bits are cut to 8), palettes and CMYK become RGB; an alpha channel is dropped.

  Raises:
    Exception: of many kinds, if the content is damaged or no image.
  """
  with _opened(io.BytesIO(content)) as image:
    return _to_mode(PIL.ImageOps.exif_transpose(image), 'RGB')


def to_rgb(content: bytes) -> bytes:
  """Converts an image file to one that every decoder decodes to the pixels of `decode_upright`.

  An upright JPEG in colour is returned unchanged, anything else as a PNG.

  Raises:
    Exception: of many kinds, if the content is damaged or no image.
  """
  pixels = decode_upright(content)  # Finds damage behind the header, too.
  with _opened(io.BytesIO(content)) as image:
    if image.format in ('JPEG', 'MPO') and image.mode == 'RGB' and _orientation(image) == 1:
      return content
  file = io.BytesIO()
  PIL.Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def fit(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """Resizes the middle of an image, uint8 [height, width, channels], to `shape`, bilinearly."""
  if image.shape == tuple(shape):
    return image
  height, width, channels = shape
  picture = PIL.Image.fromarray(image.squeeze(-1) if channels == 1 else image)
  resized = PIL.ImageOps.fit(picture, (width, height), PIL.Image.Resampling.BILINEAR)
  return np.asarray(resized).reshape(shape)


@contextlib.contextmanager
def _opened(file: BinaryIO) -> Iterator[PIL.Image.Image]:
  """Opens an image. PIL raises OSError, without a number, for damage: it becomes a ValueError."""
  try:
    with PIL.Image.open(file) as image:
      yield image
  except PIL.UnidentifiedImageError:  # Its message names an object in memory.
    raise ValueError('it is no image') from None
  except OSError as error:
    if error.errno is None:
      raise ValueError(errors.first_line(error)) from error
    raise


def _orientation(image: PIL.Image.Image) -> int:
  return image.getexif().get(PIL.ExifTags.Base.Orientation, 1)


def _to_mode(image: PIL.Image.Image, mode: str) -> np.ndarray:
  if image.mode.startswith('I'):  # PIL would clip 16 bits and not scale them.
    image = PIL.Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
  return np.asarray(image.convert(mode))
