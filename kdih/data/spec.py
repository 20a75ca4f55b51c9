"""The shape of the images of a data set, and its classes."""
import dataclasses
import unicodedata

SPLITS = ('train', 'test')  # The splits that `config.data.train_split` and `test_split` select.


@dataclasses.dataclass(frozen=True)
class DataSpec:
  """A data set of images and classes.

  Attributes:
    name: as in `config.data.name`.
    image_shape: height, width, channels.
    num_classes: the number of classes.
    classes: the names of the classes, in order; () if they are unknown.
  """

  name: str
  image_shape: tuple[int, int, int]
  num_classes: int
  classes: tuple[str, ...] = ()


def looks(name: str) -> str:
  """Returns what two names of classes share that a reader would take for the same."""
  return unicodedata.normalize('NFC', name.casefold()).strip()
