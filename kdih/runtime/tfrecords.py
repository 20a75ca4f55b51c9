"""TFRecord files, read without TensorFlow: it makes room for any length that a file names.

A record is stored as 8 bytes of length, 4 of checksum, the record, and 4 of checksum.
"""
import struct
from collections.abc import Callable, Iterator

import google_crc32c

Read = Callable[[int, int], bytes]  # (start, size) to bytes of a file, fewer where it ends.


def places(read: Read, end: int) -> Iterator[tuple[int, int]]:
  """Yields the start and the size of each record of a file of `end` bytes.

  Raises:
    ValueError: a length is damaged, or the last record does not end.
  """
  position = 0
  while position < end:
    size, = struct.unpack('<Q', checked(read, position, 8))
    if position + size + 16 > end:
      raise ValueError('a record does not end')
    yield position + 12, size
    position += size + 16


def checked(read: Read, start: int, size: int) -> bytes:
  """Returns bytes that are followed by their checksum. Raises ValueError if it is wrong."""
  data, checksum = read(start, size), read(start + size, 4)
  crc = google_crc32c.value(data)
  masked = ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff  # As TensorFlow stores it.
  if checksum != struct.pack('<I', masked):
    raise ValueError('a checksum is wrong')
  return data
