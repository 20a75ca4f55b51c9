"""The teacher signal of every view of the training images, computed once for all students.

`config.compute.cache` turns it on. `rows` lays a signal out as a row of numbers for each image, in
float16, which keeps 11 bits of a logit or probability; bfloat16 would keep 8. `build` makes the
tables, `store` keeps them on the disk, and `lookup` gives the steps the signals of their batches.
"""
from kdih.cohort.cache import build
from kdih.runtime import digests
from kdih.training.task import Signals

_kept: dict[str, tuple[dict, Signals]] = {}  # Tables of one teacher, for its next students.


def table(request: build.BuildRequest) -> Signals:
  """Returns the first of the requested tables, which is made unless this process keeps it.

  The other tables, from which other students learn, are made with it if there is room for all.
  Tables of another teacher are dropped.

  Raises:
    ConfigError: there is no room for the table, or a table on the disk is damaged or of another
      teacher.
    TrainingError: the teacher signal is not finite.
  """
  for key, (identity, _) in list(_kept.items()):
    if identity['teacher'] != request.tables[0].identity['teacher']:
      del _kept[key]
  keys = [digests.of_json([table.identity, request.place]) for table in request.tables]
  if keys[0] not in _kept:
    missing = [number for number, key in enumerate(keys) if key not in _kept]
    # If there was no room for all tables, or one failed, only the first is made.
    for number, made in zip(missing, build.make(request.only(missing), forget), strict=False):
      _kept[keys[number]] = request.tables[number].identity, made
  return _kept[keys[0]][1]


def forget() -> None:
  """Drops every table that is kept in this process."""
  _kept.clear()
