"""The command line of the benchmark."""
import argparse
import dataclasses
import pathlib

from kdih import errors

PAIRS = (('resnet110', 'resnet8'), ('resnet20', 'resnet8'), ('wrn_40_2', 'wrn_16_2'),
         ('resnet34', 'resnet18'))
PRECISIONS = ('float32', 'bfloat16')
PEERS = ('torch',)
# The items of `--measure`, in the order in which they are measured.
MEASURES = ('start', 'bare', 'loop', 'kd', 'several', 'cached', 'parts')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The settings of a command line.

  Attributes:
    pairs: (teacher, student), names of models.
    batches: global batch sizes.
    runs: the number of measurements of each item.
    precision: the type in which models compute, one of `PRECISIONS`.
    peer: one of `PEERS`, or '' for none.
    out: the JSON file, or None.
    measures: the items to measure, a subset of `MEASURES`.
  """

  pairs: tuple[tuple[str, str], ...]
  batches: tuple[int, ...]
  runs: int
  precision: str
  peer: str
  out: pathlib.Path | None
  measures: tuple[str, ...]


def read(argv: list[str]) -> Settings:
  """Returns the settings of a command line, which begins with the name of the program.

  Raises:
    ConfigError: a setting is wrong.
  """
  try:
    given, unknown = _parser().parse_known_args(argv[1:])
  except argparse.ArgumentError as error:
    raise errors.ConfigError(f'{error}; write for example --batches=64,128') from error
  if unknown:
    raise errors.ConfigError(f'{unknown[0]!r} is not a flag; --help lists them all')
  settings = Settings(
      pairs=tuple(_pair(pair) for pair in given.pairs.split(',')),
      batches=tuple(_number('--batches', size, 2) for size in given.batches.split(',')),
      runs=_number('--runs', given.runs, 1),
      precision=_choice('--precision', given.precision, PRECISIONS),
      peer=_choice('--peer', given.peer, PEERS) if given.peer else '',
      out=_writable(given.out) if given.out else None,
      measures=tuple(_choice('--measure', name, MEASURES) for name in given.measure.split(',')))
  if 'bare' not in settings.measures:
    raise errors.ConfigError("--measure: 'bare' is missing; add it, because all other items are "
                             'compared with it')
  if settings.peer:
    _require_torch()
  return settings


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
  parser.add_argument('--pairs', default=','.join(':'.join(pair) for pair in PAIRS))
  parser.add_argument('--batches', default='64,128,512')
  parser.add_argument('--runs', default='5')
  parser.add_argument('--precision', default='float32')
  parser.add_argument('--peer', default='')
  parser.add_argument('--out', default='')
  parser.add_argument('--measure', default=','.join(MEASURES))
  return parser


def _pair(text: str) -> tuple[str, str]:
  from kdih.models import registry  # Imported here, because it imports jax.

  teacher, colon, student = text.partition(':')
  if not colon:
    raise errors.ConfigError(f'--pairs: {text!r} is not a pair; write for example '
                             'resnet110:resnet8')
  for name in (teacher, student):
    if name not in registry.names():
      raise errors.unknown('--pairs', name, registry.names())
  return teacher, student


def _number(flag: str, text: str, least: int) -> int:
  if not text.isdecimal() or int(text) < least:
    raise errors.ConfigError(f'{flag}: is {text!r}; it must be a whole number of at least {least}')
  return int(text)


def _choice(flag: str, value: str, choices: tuple[str, ...]) -> str:
  if value not in choices:
    raise errors.unknown(flag, value, choices)
  return value


def _writable(path: str) -> pathlib.Path:
  file = pathlib.Path(path)
  if file.is_dir():
    raise errors.ConfigError(f'--out: {path!r} is a folder; name a file in it')
  try:
    with file.open('a'):
      pass
  except OSError as error:
    raise errors.ConfigError(
        f'--out: {path!r} cannot be written ({error.strerror}); choose another file') from error
  return file


def _require_torch() -> None:
  try:
    import torch  # noqa: F401
  except ImportError as error:
    raise errors.ConfigError("--peer=torch: PyTorch is not installed; run pip install "
                             "'kdih[torch]'") from error
