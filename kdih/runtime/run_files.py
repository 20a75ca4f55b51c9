"""The JSON files of a run folder: what each file holds, and the one way to read and write them.

A `Struct` below lists the fields that the programs rely on. A file may hold more fields: those of
other versions are kept as they are. A field that may be absent has a default, and null is allowed
only where kdih writes it: whoever reads such a field handles it. `read` checks a file against its
`Struct` and returns the content as plain dicts and lists.
"""
import sys
from typing import Annotated, Any

import msgspec
from etils import epath
from msgspec import UNSET, Meta, Struct, UnsetType

from kdih import errors
from kdih.runtime import files

Fraction = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Amount = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
Fields = dict[str, Any]

_MAX_BYTES = 2**28  # A file that is larger is none that kdih wrote.
_MAX_DEPTH = 50  # Whoever walks through the content recursively meets no RecursionError.


class _Model(Struct):
  """The fields of `config.teacher` that the programs rely on."""

  name: str


class _Student(_Model):
  """The fields of `config.student` that the programs rely on."""

  methods: list[str]


class _Data(Struct):
  """The fields of `config.data` that the programs rely on."""

  name: str
  folder: str = ''


class _Config(Struct):
  """The fields of a run's config that the programs rely on."""

  data: _Data
  teacher: _Model
  student: _Student
  heads: Fields = {}
  methods: dict[str, Fields] = {}


class _MadeBy(Struct):
  """Provenance, see `kdih.runtime.provenance`; a field that an earlier version lacked is absent."""

  command: str = ''
  versions: dict[str, str] = {}
  devices: list[str] = []
  platform: str = ''
  xla_flags: str = ''
  git_commit: str = ''


class _Computation(Struct):
  """Digests of the traced networks and methods, see `kdih.phases.computation`."""

  methods: Fields = {}


class _Identity(Struct):
  """The identity of a run, see `kdih.phases.identity.Identity`."""

  data: Fields = {}
  teacher: Fields = {}
  computation: _Computation | UnsetType = UNSET
  versions: Fields = {}


class Manifest(_MadeBy, kw_only=True):
  """`manifest.json`: the last command of a run, its config, and what the run is made of."""

  config: _Config
  identity: _Identity | UnsetType = UNSET
  accepted: list[str] = []


class _Scores(Struct):
  """The mean scores of a classifier on a split: fractions, and the cross-entropy in nats.

  The loss is None if it was not finite.
  """

  top1: Fraction
  top5: Fraction | UnsetType = UNSET
  agreement: Fraction | UnsetType = UNSET
  loss: Finite | None = None


class _Measured(Struct):
  """The scores of a classifier; `val` is None if there is no validation split."""

  val: _Scores | None
  test_last: _Scores
  test_best_val: _Scores
  parameters: Count | UnsetType = UNSET


class _TaughtBy(Struct):
  """The fingerprints of the teacher and the heads that a phase learned from."""

  variables: str = ''
  heads: str = ''


class _ResultIdentity(Struct):
  """Digests of what the numbers of a phase depend on, see `Identity.of_phase`."""

  data: str = ''
  teacher: _TaughtBy | UnsetType = UNSET
  computation: Fields = {}
  versions: Fields = {}


class _Lost(Struct):
  """The step and the validation accuracy of best variables whose files were damaged."""

  step: Count
  top1: Fraction


class TeacherResult(_Measured, kw_only=True):
  """`teacher/result.json`: the scores of a finished phase, and its cost in wall-clock seconds.

  The FLOPs are None if they could not be counted.
  """

  parameters: Count
  fingerprint: str
  seed: Count
  steps: Count
  seconds: Amount
  examples_per_second: Amount
  flops: Count | None = None
  best_lost: _Lost | UnsetType = UNSET
  protocol: Fields = {}
  identity: _ResultIdentity | UnsetType = UNSET
  accepted: list[str] = []
  made_by: _MadeBy | UnsetType = UNSET


class _Method(Struct):
  """The options of a method; `kind` names its class."""

  kind: str


class StudentResult(TeacherResult, kw_only=True):
  """`student/METHOD/result.json`; `parts` are the options of the methods that a sum consists of."""

  method: _Method
  parts: Fields = {}


class _Uncertainty(Struct):
  """The mean entropy of a member's soft labels, in nats, and its expected calibration error."""

  entropy: Annotated[float, Meta(ge=0, le=100)]  # At most the logarithm of the number of classes.
  ece: Fraction


class _Agreement(Struct):
  """The fraction of images on which two members have the same first choice, [members, members]."""

  names: list[str]
  matrix: list[list[Fraction]]

  def __post_init__(self):
    size = len(self.names)
    if len(self.matrix) != size or any(len(row) != size for row in self.matrix):
      raise ValueError(f'`matrix` must have {size} rows of {size} fractions')


class _Analysis(Struct):
  """The analysis of a cohort, as `kdih.cohort.analysis.analyse` returns it."""

  members: dict[str, _Uncertainty]
  agreement: _Agreement | UnsetType = UNSET
  without: dict[str, Fraction] | UnsetType = UNSET

  def __post_init__(self):
    if self.agreement and self.agreement.names != list(self.members):
      raise ValueError('`agreement.names` must be the names of `members`')
    if self.without is not UNSET and 'none' not in self.without:
      raise ValueError('Object missing required field `none` in `without`')


class HeadsResult(TeacherResult, kw_only=True):
  """`heads/result.json`; `members` holds every head, the teacher's classifier, and the mean."""

  members: dict[str, _Measured]
  weights: dict[str, list[Finite]] = {}
  analysis: _Analysis | UnsetType = UNSET

  def __post_init__(self):
    for rule, numbers in self.weights.items():
      if len(numbers) != len(self.members) - 1:  # The mean has no weight.
        raise ValueError(f'`weights` must hold a number for each member, `{rule}` does not')
    if self.analysis and not self.analysis.members.keys() <= self.members.keys():
      raise ValueError('`analysis.members` must be names of `members`')


class _Cost(Struct):
  """What a model costs: FLOPs of a forward pass, milliseconds, bytes of its variables on disk.

  The FLOPs are None if they could not be counted.
  """

  parameters: Count
  flops: Count | None
  latency_ms: Amount
  images_per_second: Amount
  bytes: Count
  fingerprint: str


class _Compression(Struct):
  """The costs of teacher and student, measured on one device."""

  device: str
  teacher: _Cost
  student: _Cost


class Results(Struct):
  """`results.json`: the results of all finished phases, and what teacher and student cost."""

  teacher: TeacherResult | UnsetType = UNSET
  heads: HeadsResult | UnsetType = UNSET
  student: dict[str, StudentResult] = {}
  compression: _Compression | UnsetType = UNSET


class _Clock(Struct):
  """The wall-clock seconds and the timed updates of a phase before a checkpoint."""

  seconds: Amount = 0.0
  timed_steps: Count = 0
  timed_seconds: Amount = 0.0


class _Best(_Lost):
  """The best variables before a checkpoint: `digest` is that of `kdih.runtime.digests.of`."""

  digest: str


class CheckpointMeta(Struct):
  """The description of a checkpoint; one of an earlier version has the first two fields alone.

  Metrics and best variables are None if there was no validation.

  Attributes:
    lost: better variables than `best`, which were damaged; or None.
    scheduled: whether an undisturbed run writes this checkpoint, too.
  """

  meta: _Clock
  metrics: _Scores | None
  best: _Best | None = None
  lost: _Lost | None = None
  scheduled: bool = True


class Rewind(Struct):
  """`checkpoints/rewind.json`: the step that training went back to, and its learning rate's factor.

  The factor is one half for each rewind, of which `config.max_rewinds` allows 100.
  """

  step: Count
  learning_rate_scale: Annotated[float, Meta(ge=2**-100, le=1)]


class MetricsLine(Struct):
  """A line of `metrics.jsonl`: the number of updates; every other field is a metric, or null."""

  step: Count


class SweepCommand(Struct):
  """One command in `sweep.json`, which is a list of them.

  Attributes:
    config: the config of the command.
    accepted: differences to earlier commands that the user accepted.
    pairs: teacher, student and methods; the methods are absent in files of the first version.
    seeds: of the runs of every pair.
    left_out: why a method was left out, by 'TEACHER/STUDENT/METHOD'.
  """

  config: Fields
  pairs: list[tuple[str, str, list[str]]]
  seeds: list[Count]
  left_out: dict[str, str] = {}
  accepted: list[str] = []

  def __post_init__(self):
    for teacher, student, methods in self.pairs:
      for name in (teacher, student, *methods):
        if not name.replace('/', '').strip('.') or not name.isprintable():
          raise ValueError('`pairs` holds a name that cannot be the name of a folder')
      if any('/' in method for method in methods):
        raise ValueError('`pairs` holds a method with a `/` in its name')


class Failure(Struct):
  """`failure.json`: the error that ended a run of a sweep; `time` is in seconds since 1970."""

  error: str
  time: Amount = 0.0


class CacheIndex(Struct):
  """`cache.json`: what a teacher cache was computed from, and the SHA-256 digest of each block."""

  identity: Fields
  block: Annotated[int, Meta(ge=1, le=2**31 - 1)]
  digests: list[str]


class _Digests(Struct):
  """SHA-256 digests of exported variables and of their description."""

  meta: str
  variables: str


class _ExportedData(Struct):
  """The images that exported variables expect; `mean` and `std` are of pixels in [0, 1].

  The classes are None if their names are unknown.
  """

  mean: Finite | list[Finite] | UnsetType = UNSET
  std: Finite | list[Finite] | UnsetType = UNSET
  classes: list[str] | None = None


class ExportedMeta(Struct):
  """The description of exported variables, in `variables/meta`."""

  model: Fields
  digests: _Digests
  data: _ExportedData | UnsetType = UNSET
  teacher: str = ''
  weights: dict[str, list[Finite]] = {}


def read(path: epath.PathLike, kind: Any) -> Any:
  """Returns the content of a JSON file after a check, or None if there is no file.

  Args:
    path: local, or on an object store.
    kind: one of the types above, or any other type that `msgspec.convert` knows.

  Returns:
    Dicts and lists with all fields of the file, not only those of `kind`.

  Raises:
    FileError: the content of the file is not of this kind.
    UnreadableError: the file cannot be read.
  """
  path = epath.Path(path)
  try:
    if not files.exists(path):
      return None
    if not files.is_file(path):
      raise errors.FileError(path, 'it is not a file')
    if files.size(path) > _MAX_BYTES:
      raise errors.FileError(path, f'it is larger than {_MAX_BYTES >> 20} MiB')
    content = msgspec.json.decode(path.read_bytes())
    if _depth(content) > _MAX_DEPTH:
      raise RecursionError
    msgspec.convert(content, kind)
  except RecursionError as error:
    raise errors.FileError(path, f'its content is nested over {_MAX_DEPTH} deep') from error
  except (msgspec.MsgspecError, UnicodeDecodeError) as error:
    raise errors.FileError(path, str(error)) from error
  except Exception as error:  # Libraries for object stores raise many kinds.
    if not (isinstance(error, OSError) or files.system_error(error)):
      raise
    reason = getattr(error, 'strerror', None) or errors.first_line(error)
    raise errors.UnreadableError(path, reason) from error
  return content


def _depth(content: Any) -> int:
  """Returns how deep dicts and lists are nested, without recursion."""
  depth, level = 0, [content]
  while level := [inner for outer in level if isinstance(outer, dict | list)
                  for inner in (outer.values() if isinstance(outer, dict) else outer)]:
    depth += 1
  return depth


def read_result(workdir: epath.PathLike, phase: str) -> Any:
  """Returns the result of a phase in a run folder, such as 'student/kd'; None if there is none.

  Raises:
    FileError: as `read`.
  """
  kinds = {'teacher': TeacherResult, 'heads': HeadsResult}
  return read(epath.Path(workdir) / phase / 'result.json', kinds.get(phase, StudentResult))


def write(path: epath.PathLike, content: Any) -> None:
  """Writes JSON so that the file is either complete or unchanged; only the first process writes.

  Raises:
    ConfigError: as `encode`.
  """
  files.write_atomically(path, msgspec.json.format(encode(content), indent=2) + b'\n')


def encode(content: Any) -> bytes:
  """Returns JSON in one line, with null for numbers that are not finite, which JSON lacks.

  Raises:
    ConfigError: a text cannot be written as UTF-8.
  """
  try:  # Scalars and arrays of numpy become plain numbers and lists.
    return msgspec.json.encode(content, enc_hook=lambda value: value.tolist())
  except UnicodeEncodeError as error:
    raise errors.ConfigError(f'{errors.in_line(error.object)!r} is not valid Unicode text; choose '
                             'another name') from error
