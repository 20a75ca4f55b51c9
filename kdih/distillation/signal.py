"""What a method gets of its teachers for a batch, where that is a row of numbers for each image."""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Hearing:
  """All that a method hears of its teachers, where that is a row of numbers for each image.

  Attributes:
    name: says what the rows hold; methods that hear the same have the same.
    rows: (teacher, members, weights), see `Lesson`, to [batch, numbers].
  """

  name: str
  rows: Callable[[Any, Mapping[str, jax.Array], Mapping[str, jax.Array]], jax.Array]


LOGITS = Hearing("the teacher's logits", lambda teacher, members, weights: teacher.logits)
