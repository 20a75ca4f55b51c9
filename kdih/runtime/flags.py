"""The command line: `--config=FILE[:ARGUMENT] --workdir=FOLDER --config.field=value ...`."""
import re
from collections.abc import Mapping
from types import MappingProxyType

import ml_collections
from absl import flags
from ml_collections import config_flags

from kdih import errors

_HELP = {
    'config': 'Config file, with its argument if any: configs/cifar100.py:runlocal. Set any field '
              'with --config.field=value; kdih/config/fields.py lists them all.',
    'workdir': 'Folder for checkpoints, variables, metrics and the report.',
}


def usage(more: Mapping[str, str] = MappingProxyType({})) -> str:
  """The flags, one line each; `more` are those of a program, as for `read`."""
  return '\n'.join(f'  --{name}  {text}' for name, text in {**_HELP, **more}.items())


def read(
    argv: list[str], more: Mapping[str, str] = MappingProxyType({}), group: str = ''
) -> tuple[ml_collections.ConfigDict, str]:
  """The config, with its overrides, and the workdir.

  Args:
    argv: the command, program name first.
    more: further flags, {name: help}: each is short for the field `config.<group>.<name>`.
    group: of those fields.

  Raises:
    ConfigError: a flag that is missing or unknown, a config file that cannot be read or raises
      an error, an override of a field that does not exist or of another type.
  """
  argv = [_lengthen(argument, more, group) for argument in argv]
  values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, _HELP['workdir'], flag_values=values)
  try:
    config_flags.DEFINE_config_file('config', None, _HELP['config'], flag_values=values,
                                    sys_argv=argv)
    rest = values(argv)[1:]
    config, workdir = values.config, values.workdir
    if config is not None:
      _split_tuples(config)  # The first to touch the config, which raises if it was not read.
  except Exception as error:  # A config is a program: it may raise anything.
    raise errors.ConfigError(errors.in_line(_reason(error))) from error
  if rest:
    raise errors.ConfigError(f'{rest[0]!r} is not a flag; settings are --config.field=value')
  for name, value in (('config', config), ('workdir', workdir)):
    if not value:
      raise errors.ConfigError(f'--{name}: is not set; such as --config=configs/digits.py '
                               '--workdir=runs/digits')
  if type(config) is not ml_collections.ConfigDict:
    raise errors.ConfigError('--config: get_config must return a ConfigDict that can be changed; '
                             'it begins with config = fields.base()')
  return config, workdir


def _lengthen(argument: str, more: Mapping[str, str], group: str) -> str:
  name, equals, value = argument.removeprefix('-').removeprefix('-').partition('=')
  if not argument.startswith('-') or name not in more:
    return argument
  return f'--config.{group}.{name}={value if equals else "True"}'


def _reason(error: Exception) -> str:
  text = str(error).strip()
  last = text.split('\n')[-1].strip()
  if isinstance(error, AttributeError):
    suggestion = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
    if suggestion:
      field = f'{suggestion[2]!r}; did you mean {suggestion[1]!r}?'
    else:
      field = f'{text.strip(chr(34) + chr(39))!r}; kdih/config/fields.py lists all'
    return f'--config: there is no such field: {field}'
  if isinstance(error, OSError):
    return f'--config: the config file cannot be read: {last}'
  if 'Traceback' in text:  # ml_collections puts that of the config file into the message.
    return last.removeprefix('kdih.errors.ConfigError: ')
  return text if isinstance(error, flags.Error) else f'--config: {type(error).__name__}: {text}'


def _split_tuples(config: ml_collections.ConfigDict) -> None:
  """Reads `--config.student.methods=ce,kd`, which arrives as ('ce,kd',), as ('ce', 'kd')."""
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      _split_tuples(value)
    elif isinstance(value, tuple) and all(isinstance(item, str) for item in value):
      config[key] = tuple(part.strip() for item in value for part in item.split(',') if part)
