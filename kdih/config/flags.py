"""The command line: `--config=FILE[:ARGUMENT] --workdir=FOLDER --config.field=value ...`."""
import difflib
import logging
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from kdih import errors
from kdih.config.fields import FIELDS
from kdih.config.values import Flag, Group, Text, read_plain, shown
from kdih.runtime import files

logger = logging.getLogger(__name__)

_HELP = {
    'config': 'Config file, with its argument if any: configs/cifar100.py:runlocal. Set any field '
              'with --config.FIELD=VALUE, several values joined by commas; '
              'kdih/config/README.md lists them all.',
    'workdir': 'Folder for checkpoints, variables, metrics and the report.',
}


class _Override(NamedTuple):
  """An override on the command line: the name of a field, and its value or None if it has none."""

  name: str
  text: str | None


def usage(short: Mapping[str, str] = MappingProxyType({})) -> str:
  """Returns the help on the flags, one line each; `short` as for `read`."""
  lines = {**_HELP, **{flag: f'{FIELDS[name].doc} ({FIELDS[name].kind.words})'
                       for flag, name in short.items()}}
  return '\n'.join(f'  --{name}  {text}' for name, text in lines.items())


def read(
    argv: Sequence[str], short: Mapping[str, str] = MappingProxyType({})
) -> tuple[ml_collections.ConfigDict, str]:
  """Returns the config with its overrides, and the workdir.

  Args:
    argv: the command line, which begins with the name of the program.
    short: further flags, {flag: field that it sets}, such as {'seeds': 'sweep.seeds'}.

  Raises:
    ConfigError: a flag is missing or unknown, the config file cannot be read or raises an error, or
      an override names no field or has a value of another type, or the workdir cannot be a path.
  """
  rest, overrides = _separated([_lengthened(argument, short) for argument in argv])
  config, workdir = _parsed(rest, short)
  for name, value in (('config', config), ('workdir', workdir)):
    if not value:
      raise errors.ConfigError(f'--{name}: is not set; write for example '
                               '--config=configs/digits.py --workdir=runs/digits')
  if type(config) is not ml_collections.ConfigDict:
    raise errors.ConfigError('--config: get_config must return a mutable ConfigDict; begin it with '
                             'config = fields.base()')
  logger.debug(f'command line: {shlex.join(argv[1:])}')
  for override in overrides:
    _set(config, override)
  return config, str(files.given('--workdir', workdir))


def _lengthened(argument: str, short: Mapping[str, str]) -> str:
  """Returns an argument in which a short flag is replaced by the name of its field."""
  name, equals, value = argument.removeprefix('-').removeprefix('-').partition('=')
  if not argument.startswith('-') or name not in short:
    return argument
  if equals and not value:  # This happens if a shell variable is not set.
    raise errors.ConfigError(f'--{name}: has no value; write --{name}=VALUE, or remove the flag')
  return f'--config.{short[name]}{equals}{value}'


def _separated(argv: Sequence[str]) -> tuple[list[str], list[_Override]]:
  """Returns the arguments that are not overrides, and the overrides."""
  rest: list[str] = []
  overrides = []
  arguments = iter(argv)
  for argument in arguments:
    found = re.fullmatch(r'--?(no)?config\.([^=]*)(?:=(.*))?', argument, re.DOTALL)
    if argument == '--':
      rest += [argument, *arguments]
    elif not found:
      rest.append(argument)
    elif found[1]:
      overrides.append(_Override(found[2], _off(found[2], found[3])))
    elif found[3] is not None:
      overrides.append(_Override(found[2], found[3]))
    elif _is_flag(found[2]):
      overrides.append(_Override(found[2], 'true'))
    else:
      value = next(arguments, '--')
      overrides.append(_Override(found[2], None if value.startswith('--') else value))
  return rest, overrides


def _off(name: str, value: str | None) -> str:
  """Returns the value of `--noconfig.field`."""
  if value is not None or name in FIELDS and not _is_flag(name):
    setting = f'config.{errors.in_line(name)}'
    raise errors.ConfigError(f'--no{setting}: sets a field that is True or False to False, and '
                             f'takes no value; write --{setting}=VALUE')
  return 'false'


def _is_flag(name: str) -> bool:
  return name in FIELDS and isinstance(FIELDS[name].kind, Flag)


def _parsed(argv: list[str], short: Mapping[str, str]) -> tuple[Any, str]:
  """Returns what the config file returns, and the workdir; '' in the place of a missing flag."""
  values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, _HELP['workdir'], flag_values=values)
  try:
    config_flags.DEFINE_config_file('config', None, _HELP['config'], flag_values=values,
                                    sys_argv=argv)
    rest = values(argv)[1:]
    config, workdir = values.config, values.workdir or ''
    getattr(config, 'items', None)  # Raises the error of the config file, if there is one.
  except flags.UnrecognizedFlagError as error:
    raise _no_flag(error.flagname, short) from error
  except Exception as error:  # A config file is a program and may raise any error.
    raise errors.ConfigError(errors.in_line(_reason(error))) from error
  if rest:
    raise errors.ConfigError(f'{rest[0]!r} is not a flag; set a field by --config.FIELD=VALUE, '
                             'with several values joined by commas')
  return config, workdir


def _no_flag(name: str, short: Mapping[str, str]) -> errors.ConfigError:
  hint = _namesakes(name) or errors.closest(name, ('config', 'workdir', *short))
  return errors.ConfigError(f'--{errors.in_line(name)}: there is no such flag; {hint}set a field '
                            'of the config by --config.FIELD=VALUE')


def _namesakes(name: str) -> str:
  """Returns 'did you mean config.x.name or config.y.name? ', or '' if no field has this name."""
  group, _, key = name.rpartition('.')
  same_key = [field for field, declared in FIELDS.items()
              if field.rpartition('.')[2] == key and not isinstance(declared.kind, Group)]
  nearer = [field for field in same_key if field.partition('.')[0] == group.partition('.')[0]]
  fields = ' or '.join(f'config.{field}' for field in nearer or same_key)
  return f'did you mean {fields}? ' if fields else ''


def _reason(error: Exception) -> str:
  text = str(error).strip()
  last = text.split('\n')[-1].strip()
  if isinstance(error, OSError):
    return f'--config: the config file cannot be read: {last}{_neighbour(last)}'
  if 'Traceback' in text:  # ml_collections puts the traceback of the config file into its message.
    frame = text.rpartition('  File "')[2]  # absl puts a traceback into one line.
    found = re.search(r'\b(\w+\.)*\w+(Error|Exception|Exit): .*', frame, re.DOTALL)
    reason = found[0] if found else last
    return f'--config: {reason.removeprefix("kdih.errors.ConfigError: ")}'
  return text if isinstance(error, flags.Error) else f'--config: {type(error).__name__}: {text}'


def _neighbour(message: str) -> str:
  """Returns '; did you mean PATH?' with a file of the same folder, or of configs, or ''.

  Args:
    message: the message of the operating system; ml_collections does not keep its error.
  """
  found = re.search(r"No such file or directory: '(.+)'$", message)
  if not found:
    return ''
  path = pathlib.Path(found[1])
  known = {file.name: file for folder in (pathlib.Path('configs'), path.parent)
           for file in sorted(folder.glob('*.py'))}
  close = difflib.get_close_matches(path.name, known, n=1)
  return f'; did you mean {str(known[close[0]])!r}?' if close else ''


def _set(config: ml_collections.ConfigDict, override: _Override) -> None:
  """Sets a field to the value of an override, which is checked later."""
  name, text = override
  setting = f'config.{errors.in_line(name)}'
  field = FIELDS.get(name)
  own = re.fullmatch(r'(methods\.[^.]+|(teacher|student)\.kwargs)\..+', name)
  if not own and (not field or isinstance(field.kind, Group)):
    raise _no_field(name, setting)
  if text is None:
    raise errors.ConfigError(f'{setting}: has no value; write --{setting}=VALUE')
  *groups, key = name.split('.')
  group = _group(config, groups, setting, make=bool(own))
  if own:
    _assign(group, key, _own_value(group.get(key), text))
  else:
    _assign(group, key, FIELDS[name].kind.read(setting, text))
  logger.debug(f'{setting} = {group[key]!r}')


def _no_field(name: str, setting: str) -> errors.ConfigError:
  if re.fullmatch(r'methods(\.[^.]+)?', name) or any(
      field.startswith(f'{name}.') or field == name for field in FIELDS):
    return errors.ConfigError(f'{setting}: is a group of fields; {_namesakes(name)}set one of its '
                              f'fields by --{setting}.FIELD=VALUE')
  group, _, key = name.rpartition('.')
  siblings = [field for field in FIELDS if field.startswith(f'{group}.')]
  hint = _namesakes(name) or (
      errors.closest(key, (field.rpartition('.')[2] for field in siblings)) if siblings
      else errors.closest(name, FIELDS))
  if not hint and group in ('teacher', 'student'):
    hint = f'set an argument of the model by --config.{group}.kwargs.{key}=VALUE; '
  return errors.ConfigError(f'{setting}: there is no such field; {hint}kdih/config/README.md lists '
                            'all fields')


def _own_value(before: Any, text: str) -> Any:
  """Returns the value of a user's own field, if possible of the type of its previous value."""
  value = read_plain(text)
  if isinstance(before, str) and not isinstance(value, tuple):
    return Text().read('', text)
  if isinstance(before, float) and isinstance(value, bool):
    return text  # A ConfigDict would convert the bool to a number.
  if isinstance(before, tuple | list) and not isinstance(value, tuple):
    return (value,) if value != '' else ()
  return value


def _group(
    config: ml_collections.ConfigDict, names: Sequence[str], setting: str, make: bool = False
) -> ml_collections.ConfigDict:
  """Returns the group of fields that nested names lead to; makes missing groups if `make`."""
  for depth, name in enumerate(names, 1):
    if make and name not in config:
      _assign(config, name, ml_collections.ConfigDict(type_safe=False))
    if name not in config:
      raise errors.ConfigError(f'config.{".".join(names[:depth])}: is missing in the config file, '
                               f'and {setting} cannot be set; add the group to the file')
    inner = config[name]
    if not isinstance(inner, ml_collections.ConfigDict):
      raise errors.ConfigError(f'config.{".".join(names[:depth])}: is {shown(inner)}; it must '
                               'be a group of fields')
    config = inner
  return config


def _assign(group: ml_collections.ConfigDict, key: str, value: Any) -> None:
  with group.unlocked(), group.ignore_type():
    group[key] = value
