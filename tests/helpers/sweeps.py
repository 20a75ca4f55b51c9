"""Sweeps of tiny networks, through the entry point."""
import pathlib

from kdih.sweep import __main__ as sweep
from tests.helpers.runs import tiny_command

NETS = 'tests.helpers.tiny_nets'
MODEL = f'{NETS}:TinyNet'
PAIR = f'{NETS}.TinyNet/{NETS}.TinyNet'  # Its folder.


def run(workdir, data_dir, *overrides) -> int:
  return sweep.main(tiny_command(workdir, data_dir, *overrides))


def results(workdir) -> set[str]:
  """The paths of all results."""
  return {str(path.relative_to(workdir)) for path in pathlib.Path(workdir).rglob('result.json')}
