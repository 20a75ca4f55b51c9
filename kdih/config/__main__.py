"""Prints the table of all fields: `python -m kdih.config > kdih/config/README.md`."""
import sys
from collections.abc import Iterable, Iterator, Sequence

import tabulate

from kdih.config.fields import FIELDS, GROUPS, TRAININGS
from kdih.config.recipes import RECIPES
from kdih.config.schema import BY_TEACHER, FIXED, FREE, SAME, Field

_INTRODUCTION = """\
# Every field of the config

Written by `python -m kdih.config > kdih/config/README.md` from the declarations in
[`fields.py`](fields.py).

Set a field in a config file, `config.data.padding = 4`, or on the command line,
`--config.data.padding=4`. Write a tuple with commas, with or without brackets around it:
`--config.student.methods=ce,kd,dih`. A field that is True or False needs no value:
`--config.profile`, `--noconfig.deterministic`.

The last two columns describe what a change of the field means:

- *Resume*: whether a run can resume after the field was changed. If it cannot, add
  `--accept=config` to the command to resume all the same.
- *Average*: whether a report averages runs that differ in the field, as it averages seeds.
  *teacher* means that it averages them if their teachers have the same fingerprint, a
  digest of the teacher's variables.
- *partly*: some changes of the field count and others do not, as its description explains.

## config.methods

`config.methods.NAME` is a way to teach the student. Its `kind` is a file of
[`kdih/methods`](../methods), and its other fields are the options of the class in this file. It may
also have a `learning_rate`, which replaces that of `config.student.train`.
[`method_presets.py`](method_presets.py) lists the predefined entries. Change an option of an entry,
or add your own entry:

```sh
python -m kdih.main --config=configs/digits.py --workdir=runs/mine \\
    --config.methods.dih.temperature='(5.0,4.0,3.0,2.0)' \\
    --config.methods.mine.kind=at --config.methods.mine.weight=500 \\
    --config.methods.mine.cross_entropy=1 --config.student.methods=dih,mine
```

A run can resume after a change of the options of methods that it has not started yet.
"""
_COLUMNS = ('Field', 'Default', 'What it does', 'Values', 'Resume', 'Average')
_RESUME = {FREE: 'yes', FIXED: 'no'}
_AVERAGE = {FREE: 'yes', SAME: 'no', BY_TEACHER: 'teacher'}


def document() -> str:
  """Returns the content of `README.md`."""
  sections = [_INTRODUCTION, *_section('config', _rows(''))]
  for group, about in GROUPS.items():
    if group not in TRAININGS:
      sections += _section(f'config.{group}', _rows(group), about)
    elif group == TRAININGS[0]:  # They have the same fields.
      sections += _section(', '.join(f'config.{name}' for name in TRAININGS), _training_rows(),
                           *(f'- `{name}`: {GROUPS[name]}' for name in TRAININGS))
  return '\n'.join([*sections, *_recipes(), ''])


def _section(title: str, rows: Iterable[Sequence[str]], *about: str) -> Iterator[str]:
  yield from (f'## {title}', '', *about, *([''] if about else []))
  yield from (_table(_COLUMNS, rows), '')


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  escaped = [[cell.replace('|', '\\|') for cell in row] for row in rows]
  return tabulate.tabulate(escaped, titles, tablefmt='github', disable_numparse=True, stralign=None)


def _rows(group: str) -> Iterator[Sequence[str]]:
  for name, field in FIELDS.items():
    if name.rpartition('.')[0] == group:
      yield _row(name, f'`{field.default!r}`', field)


def _training_rows() -> Iterator[Sequence[str]]:
  """Yields the rows of the fields that all groups of `TRAININGS` have."""
  for name, field in FIELDS.items():
    group, _, key = name.rpartition('.')
    if group == 'student.train':
      default = f'`{field.default!r}`'
      for other in TRAININGS:
        value = FIELDS[f'{other}.{key}'].default
        default += f'; `{value!r}` for `{other}`' if value != field.default else ''
      yield _row(key, default, field)


def _row(name: str, default: str, field: Field) -> Sequence[str]:
  resume, average = ('partly' if callable(meaning) else words[meaning] for meaning, words in (
      (field.resume, _RESUME), (field.averaged, _AVERAGE)))
  return f'`{name}`', default, field.doc, field.kind.words, resume, average


def _recipes() -> Iterator[str]:
  yield from ('## Recipes', '',
              'A recipe is an argument of the config files: '
              '`--config=configs/cifar100.py:recipe=repdistiller`. Your own',
              'config file passes it to `fields.base(recipe)`. The recipes of '
              '[`recipes.py`](recipes.py) differ in these defaults:', '')
  yield _table(('', *(f'`{name}`' for name in RECIPES)), (
      (f'`{option}` of {what}', *(f'`{recipe[part][option]!r}`' for recipe in RECIPES.values()))
      for part, what in (('train', 'every `train`'), ('logits', 'methods that weight logits'))
      for option in RECIPES['paper'][part]))


if __name__ == '__main__':
  sys.stdout.write(document())
