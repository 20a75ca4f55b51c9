"""A config without ml_collections, for programs that take no overrides on a command line."""
import copy
from collections.abc import Mapping
from typing import Any

from kdih.config import fields, method_presets
from kdih.config.schema import nested


class Plain(dict[str, Any]):
  """A config with the interface of `ml_collections.ConfigDict`: `config.student.train.length`."""

  def __getattr__(self, name: str) -> Any:
    try:
      return self[name]
    except KeyError as error:
      raise AttributeError(name) from error

  def __setattr__(self, name: str, value: Any) -> None:
    self[name] = value

  def copy_and_resolve_references(self) -> 'Plain':
    """Returns a deep copy; a `Plain` has no references."""
    return _plain(self.to_dict())

  def to_dict(self) -> dict[str, Any]:
    """Returns a deep copy as nested dicts."""
    return {name: value.to_dict() if isinstance(value, Plain) else copy.deepcopy(value)
            for name, value in self.items()}


def config(overrides: Mapping[str, Any], recipe: str = 'paper') -> Plain:
  """Returns the defaults of a recipe, changed by overrides such as {'student.name': 'resnet8'}.

  Raises:
    KeyError: there is no such field.
  """
  values = fields.of_recipe(recipe)
  methods = {'methods': method_presets.methods(recipe)}
  for name, value in overrides.items():
    if name not in values:
      raise KeyError(name)
    values[name] = value
  return _plain({**nested(values), **methods})


def _plain(tree: Mapping[str, Any]) -> Plain:
  return Plain({name: _plain(value) if isinstance(value, dict) else value
                for name, value in tree.items()})
