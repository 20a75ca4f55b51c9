"""How a phase trains, by recipe; and how a config shrinks to a smoke test."""
import ml_collections

from kdih import errors
from kdih.config import choices


def train(recipe: str) -> ml_collections.ConfigDict:
  """How a phase trains, after a `recipe` (one of `choices.RECIPES`).

  'paper' is the DIH code's, 'repdistiller' that of RepDistiller and mdistiller.
  """
  if recipe not in choices.RECIPES:
    raise errors.unknown('recipe', recipe, choices.RECIPES)
  paper = recipe == 'paper'
  config = ml_collections.ConfigDict()
  # What `length`, `milestones`, `warmup` and `evaluate_every` count: 'epochs' or 'steps'.
  config.unit = 'epochs'
  config.length = 200.0 if paper else 240.0
  # Between two evaluations on the validation split, each with a checkpoint.
  config.evaluate_every = 1.0
  # Images in one step, over all devices.
  config.global_batch_size = 64
  # 'sgd' or 'adamw'; weight decay applies to every parameter.
  config.optimizer = 'sgd'
  config.momentum = 0.9
  config.nesterov = paper
  config.weight_decay = 5e-4
  # 'piecewise' multiplies by `decay` at each milestone; 'cosine' falls to 0; 'constant'.
  config.schedule = 'piecewise'
  config.learning_rate = 0.1 if paper else 0.05
  config.milestones = (60.0, 120.0, 180.0) if paper else (150.0, 180.0, 210.0)
  config.decay = 0.2 if paper else 0.1
  # A linear rise of the learning rate from 0.
  config.warmup = 0.0
  return config


def run_local(config: ml_collections.ConfigDict) -> None:
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
