"""Image files of many kinds as one kind: upright, three channels of 8 bits."""
import io
import pathlib

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

# PIL's name for images of so many channels.
MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}


def _orientation(image: PIL.Image.Image) -> int:
  return image.getexif().get(PIL.ExifTags.Base.Orientation, 1)


def read_size(path: pathlib.Path) -> tuple[int, int]:
  """Height and width in pixels of the upright image, from the file's header.

  Raises:
    Exception: of many kinds, where the file is no image.
  """
  with PIL.Image.open(path) as image:
    turned = _orientation(image) in (5, 6, 7, 8)  # Those that swap height and width.
    return image.size if turned else image.size[::-1]


def to_rgb(content: bytes) -> bytes:
  """An image file as a file that every decoder reads alike, [height, width, 3] of uint8.

  A JPEG in colour stays as it is. All else becomes a PNG: what is not upright by its EXIF
  orientation is turned; grey levels (16 bits are cut to 8), palettes and CMYK become RGB; an
  alpha channel is dropped.

  Raises:
    Exception: of many kinds, where the content is damaged or no image.
  """
  with PIL.Image.open(io.BytesIO(content)) as image:
    image.load()  # Finds damage behind the header.
    if image.format in ('JPEG', 'MPO') and image.mode == 'RGB' and _orientation(image) == 1:
      return content
    upright = PIL.ImageOps.exif_transpose(image)
  file = io.BytesIO()
  # By way of an array, which has no transparent colour.
  PIL.Image.fromarray(_to_mode(upright, 'RGB')).save(file, 'PNG')
  return file.getvalue()


def decode(content: bytes, channels: int) -> np.ndarray:
  """The pixels of an image file, uint8 [height, width, channels], whatever the file's own kind.

  Grey levels are repeated, colours are turned into grey, an alpha channel is dropped or full, as
  the number of channels asks for.

  Raises:
    Exception: of many kinds, where the content is damaged or no image.
  """
  try:
    with PIL.Image.open(io.BytesIO(content)) as image:
      pixels = _to_mode(image, MODES[channels])
  except PIL.UnidentifiedImageError:  # It names an object in memory.
    raise ValueError('it is no image') from None
  return pixels.reshape(*pixels.shape[:2], channels)


def _to_mode(image: PIL.Image.Image, mode: str) -> np.ndarray:
  if image.mode.startswith('I'):  # 16 bits, which PIL would clip and not scale.
    image = PIL.Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
  return np.asarray(image.convert(mode))
