"""Methods compared: what runs of several seeds say together, pair by pair."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Run:
  """One finished student, as its result files tell of it.

  Attributes:
    path: of the workdir that it was trained in.
    data: name of the data set.
    teacher: name of the model.
    student: name of the model.
    method: name of the entry of `config.methods`.
    seed: of the run.
    protocol: what must be the same for two runs to be compared: data, teacher's fingerprint,
      student's kwargs and training; as JSON.
    result: its `result.json`.
    teacher_result: that of its teacher, or None.
    heads_result: that of the heads of its teacher, or None.
  """

  path: str
  data: str
  teacher: str
  student: str
  method: str
  seed: int
  protocol: str
  result: dict
  teacher_result: dict | None
  heads_result: dict | None


@dataclasses.dataclass(frozen=True)
class Published:
  """A number from the literature: top-1 in percent, where from, and how it was chosen."""

  top1: float
  source: str
  protocol: str


@dataclasses.dataclass(frozen=True)
class Gain:
  """The mean difference to another method over the seeds that both have, in points of top-1.

  Attributes:
    mean: of the differences.
    standard_error: of that mean; None for one seed.
    n: seeds.
  """

  mean: float
  standard_error: float | None
  n: int


@dataclasses.dataclass(frozen=True)
class Row:
  """One method on one pair. Accuracies are test top-1 in percent.

  Attributes:
    method: its name.
    seeds: those that it was run with.
    mean: after the last step, over the seeds.
    std: its standard deviation (of a sample, n - 1); None for one seed.
    best_mean: of the variables that did best on the validation split; None without one.
    best_std: likewise.
    gains: {method: the gain over it}, of those of `BASELINES` that were run.
    published: numbers for this pair and method.
  """

  method: str
  seeds: tuple[int, ...]
  mean: float
  std: float | None
  best_mean: float | None
  best_std: float | None
  gains: dict[str, Gain]
  published: tuple[Published, ...]

  @property
  def n(self) -> int:
    """The number of seeds."""
    return len(self.seeds)


@dataclasses.dataclass(frozen=True)
class Pair:
  """All methods by which one teacher taught one student under one protocol.

  Attributes:
    data: name of the data set.
    teacher: name of the model.
    student: name of the model.
    protocol: see `Run.protocol`.
    teacher_top1: test top-1 after the last step in percent, None where there is no teacher.
    teacher_published: numbers for the teacher alone.
    costs: {'teacher' | 'student': {'parameters', 'flops'}}, None where unknown.
    heads: `result.json` of the heads, None where there are none.
    rows: one a method.
  """

  data: str
  teacher: str
  student: str
  protocol: str
  teacher_top1: float | None
  teacher_published: tuple[Published, ...]
  costs: dict[str, dict[str, int | None]]
  heads: dict | None
  rows: tuple[Row, ...]


BASELINES = ('ce', 'kd', 'kd_matched')
