"""The recipes, which differ in a few defaults, and the reduction of a config to a smoke test."""
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdih import errors

if TYPE_CHECKING:
  import ml_collections

# {recipe: {'train': fields of every `config.<phase>.train`, 'logits': the weights of the labels and
# of a teacher's logits, which are options of `config.methods`}}.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    # The recipe of the DIH code.
    'paper': {
        'train': dict(length=200.0, learning_rate=0.1, milestones=(60.0, 120.0, 180.0), decay=0.2,
                      nesterov=True),
        'logits': dict(alpha=0.1, temperature=5.0),
    },
    # The recipe of RepDistiller and mdistiller.
    'repdistiller': {
        'train': dict(length=240.0, learning_rate=0.05, milestones=(150.0, 180.0, 210.0), decay=0.1,
                      nesterov=False),
        'logits': dict(alpha=0.9, temperature=4.0),
    },
}


def get(name: str) -> Mapping[str, dict[str, Any]]:
  """Returns an entry of `RECIPES`; raises ConfigError if there is none of this name."""
  if name not in RECIPES:
    raise errors.unknown('recipe', name, RECIPES)
  return RECIPES[name]


def run_local(config: 'ml_collections.ConfigDict') -> None:
  """Reduces `config` in place to a smoke test: small models, a slice of the data, four steps."""
  config.data.train_split += '[:256]'
  config.data.test_split += '[:128]'
  config.data.eval_global_batch_size = 64
  config.log_every_steps = 2
  config.teacher.name = config.student.name = 'resnet8'
  for fields in (config.teacher.train, config.heads.train, config.student.train,
                 config.student.prepare):
    fields.update(unit='steps', length=4.0, evaluate_every=2.0, milestones=(3.0,), warmup=0.0,
                  global_batch_size=32)
