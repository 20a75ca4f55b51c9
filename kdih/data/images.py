"""Image files of many kinds as one kind: upright, three channels of 8 bits."""
import io
import pathlib

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width.


def _orientation(image: PIL.Image.Image) -> int:
  return image.getexif().get(PIL.ExifTags.Base.Orientation, 1)


def read_size(path: pathlib.Path) -> tuple[int, int]:
  """Height and width in pixels of the upright image, from the file's header.

  Raises:
    Exception: of many kinds, where the file is no image.
  """
  with PIL.Image.open(path) as image:
    return image.size if _orientation(image) in _TURNED else image.size[::-1]


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
  if upright.mode.startswith('I'):  # 16 bits, which PIL would clip and not scale.
    upright = PIL.Image.fromarray((np.asarray(upright) // 256).astype(np.uint8))
  file = io.BytesIO()
  # By way of an array, which has no transparent colour.
  PIL.Image.fromarray(np.asarray(upright.convert('RGB'))).save(file, 'PNG')
  return file.getvalue()
