"""Compares finished runs in tables, pictures and one page, from their result files.

  python -m kdih.report runs/sweep
  python -m kdih.report runs/one runs/two --output=runs/comparison
  python -m kdih.report runs/digits/results.json

WORKDIR          the folder of a run, of a sweep, or a folder of runs and sweeps; several may be
                 given. For a results.json, the table of this run is printed, and nothing written.
--output=FOLDER  the folder for report.md, index.html, the tables and the pictures. It is
                 WORKDIR/comparison if one WORKDIR is given, and must be set for several.

Runs that are unfinished, damaged or under another protocol are listed, and all
other runs are compared. Exit codes: 0 done, 2 nothing to compare, or a file
cannot be read now.
"""
import argparse
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

from kdih import errors
from kdih.report import aggregate, collect, findings, tables
from kdih.report.aggregate import Pair, Run
from kdih.runtime import environment, files, places, program, run_files

_TITLE = 'Comparison of distillation methods'
_MARKS = ('report.md', 'index.html')  # They hold the title, by which the folder is known as ours.
_FILES = (*_MARKS, 'results.csv', 'runs.csv', 'tables.tex', 'pictures')


def main(argv: list[str]) -> int:
  """Runs the command line `argv` and returns the exit code."""
  return program.main(argv, f'{__doc__}\n{_parser().format_usage()}', _run)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      'kdih.report', usage='python -m kdih.report WORKDIR… [--output=FOLDER]', exit_on_error=False,
      allow_abbrev=False, add_help=False)
  parser.add_argument('paths', nargs='*')
  parser.add_argument('--output')
  return parser


def _run(argv: list[str]) -> int:
  try:
    given, unknown = _parser().parse_known_intermixed_args(argv[1:])
  except argparse.ArgumentError as error:
    raise errors.ConfigError(f'{error}; such as --output=runs/comparison') from error
  if unknown:
    raise errors.ConfigError(f'{unknown[0]!r} is not a flag; there is --output=FOLDER')
  if not given.paths:
    raise errors.ConfigError('no runs are given; write for example '
                             'python -m kdih.report runs/sweep')
  for name, values in (('WORKDIR', given.paths), ('--output', [given.output])):
    if '' in values:  # This happens if a shell variable is not set.
      raise errors.ConfigError(f'{name}: is empty; name a folder')
  if len(given.paths) == 1 and given.paths[0].endswith('.json'):
    _print_results(given.paths[0])
    return 0
  folder = _output(given.output, given.paths)
  runs, problems = collect.collect(given.paths)
  pairs, more = aggregate.compare(runs)
  if not pairs:
    raise errors.ConfigError(f'{given.paths[0]}: no finished student to compare; '
                             f'{"; ".join(problems)}; give the folder of a run or a sweep')
  try:
    print(write(pairs, runs, [*problems, *more], folder))
  except OSError as error:
    raise errors.ConfigError(f'--output: {folder} cannot be written ({error.strerror}: '
                             f'{error.filename}); choose another folder') from error
  return 0


def _print_results(path: str) -> None:
  from kdih.report import run_report  # Imports jax, which takes seconds.

  results = run_files.read(files.given('WORKDIR', path), run_files.Results)
  if not (results and {'teacher', 'heads', 'student'} & results.keys()):
    raise errors.ConfigError(f'{path}: holds no results of a run; give its results.json, such as '
                             'runs/digits/results.json')
  print(run_report.markdown_table(results))


def _output(flag: str | None, paths: Sequence[str]) -> pathlib.Path:
  """Returns the folder for the report; raises ConfigError if files in it would be lost."""
  if not flag and len(paths) > 1:
    raise errors.ConfigError('--output: is not set; set the folder for the report of several runs')
  folder = pathlib.Path(files.given('--output', flag) if flag
                        else pathlib.Path(paths[0]) / 'comparison')
  if not flag and not os.path.isdir(folder.parent):  # It fails at no name, however long.
    raise errors.ConfigError(f'{paths[0]}: there is no such folder; give the folder of a run or '
                             'a sweep')
  if not flag and folder.is_symlink():
    raise errors.ConfigError(f'{folder} is a symbolic link, and what it points to would be written '
                             'to; set --output to a folder')
  for path in (folder, folder / 'pictures'):
    files.check_writable('--output', path)
  files.require_ordinary(folder, '--output')
  places.check_output(folder)
  try:
    # Listed before the marks are read: another report that begins writes a mark first.
    there = [path for name in _FILES if files.exists(path := folder / name)]
    marks = [path for name in _MARKS if files.exists(path := folder / name)]
    others = [path for path in marks or there if not _is_ours(path)]
  except OSError as error:
    raise errors.ConfigError(f'--output: {error.filename} cannot be read ({error.strerror}); '
                             'choose another folder') from error
  if others:
    raise errors.ConfigError(f'--output: {others[0]} is not part of a comparison and would be '
                             'overwritten; remove it, or choose another folder')
  return folder


def _is_ours(path: pathlib.Path) -> bool:
  """Returns whether a file begins as a comparison does."""
  if not files.is_file(path):
    return False
  with path.open(encoding='utf-8', errors='replace') as file:
    return _TITLE in file.read(2**14)


def write(
    pairs: Sequence[Pair], runs: Sequence[Run], problems: Sequence[str], folder: pathlib.Path
) -> str:
  """Writes all files of the report into `folder`, and returns the text to print.

  The files are `report.md`, `results.csv` (a row for each method of a pair), `runs.csv` (a row for
  each run), `tables.tex`, `index.html`, which contains all tables and pictures, and `pictures/`
  with PNG and SVG files.
  """
  environment.import_library('matplotlib')
  from kdih.report import comparison_plots, page as page_lib  # These take seconds.

  folder.mkdir(parents=True, exist_ok=True)
  if not files.exists(folder / 'report.md'):  # It marks what a report that is stopped leaves.
    files.write_atomically(folder / 'report.md', f'# {_TITLE}\n')
  pictures_folder = folder / 'pictures'
  pictures_folder.mkdir(exist_ok=True)
  pictures = comparison_plots.draw(pairs, pictures_folder)
  provenance = list(dict.fromkeys(line for run in runs for line in run.provenance))

  parts: list[str] = []
  for pair, heading in zip(pairs, comparison_plots.headings(pairs), strict=True):
    parts += [f'## {tables.markdown_escaped(heading)}',
              tables.markdown_escaped(tables.caption(pair)),
              tables.markdown(pair),
              *map(tables.markdown_escaped, findings.findings(pair))]
  parts += _section('What is missing or was left out', problems)
  text = '\n\n'.join(parts)
  shown: list[str] = []
  for picture in pictures:
    section, title, caption = map(
        tables.markdown_escaped, (picture.section, picture.title, picture.text))
    shown += [f'![{title}](pictures/{picture.name}.png)', f'{section}. **{title}.** {caption}']

  contents = {
      'report.md': '\n\n'.join(
          [f'# {_TITLE}', text, *shown, *_section('Provenance', provenance)]) + '\n',
      'results.csv': tables.csv_of_pairs(pairs),
      'runs.csv': tables.csv_of_runs(runs),
      'tables.tex': ('% Needs \\usepackage{array, booktabs}.\n'
                     + '\n\n'.join(map(tables.latex, pairs)) + '\n'),
      'index.html': page_lib.page(
          _TITLE, pairs, pictures, pictures_folder, problems, provenance)}
  for name, content in contents.items():
    files.write_atomically(folder / name, content)
  return f'{text}\n\nthe page: {folder / "index.html"}'


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
  if lines:
    yield f'## {title}'
    yield '\n'.join(f'- {tables.markdown_escaped(line)}' for line in lines)


if __name__ == '__main__':
  program.end(main(sys.argv))
