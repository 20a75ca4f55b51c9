"""The recipes: in which defaults they differ. And how a config shrinks to a smoke test."""
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdih import errors

if TYPE_CHECKING:
  import ml_collections

# Of each recipe, `train`: how phases train (fields of `config.<phase>.train`); and `logits`: how
# labels and a teacher's logits are weighted (options of `config.methods`).
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    # The DIH code's.
    'paper': {
        'train': dict(length=200.0, learning_rate=0.1, milestones=(60.0, 120.0, 180.0), decay=0.2,
                      nesterov=True),
        'logits': dict(alpha=0.1, temperature=5.0),
    },
    # That of RepDistiller and mdistiller.
    'repdistiller': {
        'train': dict(length=240.0, learning_rate=0.05, milestones=(150.0, 180.0, 210.0), decay=0.1,
                      nesterov=False),
        'logits': dict(alpha=0.9, temperature=4.0),
    },
}


def get(name: str) -> Mapping[str, dict[str, Any]]:
  """Returns the entry of `RECIPES`; raises ConfigError where there is none."""
  if name not in RECIPES:
    raise errors.unknown('recipe', name, RECIPES)
  return RECIPES[name]


def run_local(config: 'ml_collections.ConfigDict') -> None:
  """Shrinks `config` in place to a smoke test: small models, a slice of the data, few steps."""
  config.data.train_split += '[:256]'
  config.data.test_split += '[:128]'
  config.data.eval_global_batch_size = 64
  config.log_every_steps = 2
  config.teacher.name = config.student.name = 'resnet8'
  for fields in (config.teacher.train, config.heads.train, config.student.train,
                 config.student.prepare):
    fields.update(unit='steps', length=4.0, evaluate_every=2.0, milestones=(3.0,), warmup=0.0,
                  global_batch_size=32)
