"""What models need to know of a data set."""
import dataclasses

SPLITS = ('train', 'test')  # Of a data set, as `config.data` names their parts.


@dataclasses.dataclass(frozen=True)
class DataSpec:
  """A data set of images and classes."""

  name: str
  image_shape: tuple[int, int, int]  # Height, width, channels.
  num_classes: int
  classes: tuple[str, ...] = ()  # Their names, in order; () where these are unknown.
