"""The teacher signal of every view of the training images, computed once for all students.

`config.compute.cache` asks for it. `rows` lays a signal out as a row of numbers for each image, in
float16: of logits and of probabilities it keeps 11 bits, bfloat16 8. `build` makes the tables,
`store` keeps them on the disk, and `lookup` gives the steps the signals of their batches.
"""
from kdih.cohort.cache import build
from kdih.runtime import digests
from kdih.training.task import Signals

_kept: dict[str, tuple[dict, Signals]] = {}  # Tables of one teacher, for the next student.


def table(request: build.BuildRequest) -> Signals:
  """The first of the tables that are requested, made where this process does not keep it yet.

  The others, which other students learn from, are made with it as far as there is room. Tables of
  another teacher are dropped.

  Raises:
    ConfigError: there is no room for it, or one on the disk does not serve.
    TrainingError: what the teachers say is not finite.
  """
  for key, (identity, _) in list(_kept.items()):
    if identity['teacher'] != request.tables[0].identity['teacher']:
      del _kept[key]
  keys = [digests.of_json([table.identity, request.place]) for table in request.tables]
  if keys[0] not in _kept:
    missing = [number for number, key in enumerate(keys) if key not in _kept]
    # Where there was no room for all of them, or one failed, the first alone is made.
    for number, made in zip(missing, build.make(request.only(missing), forget), strict=False):
      _kept[keys[number]] = request.tables[number].identity, made
  return _kept[keys[0]][1]


def forget() -> None:
  """Drops every table that is kept in this process."""
  _kept.clear()
