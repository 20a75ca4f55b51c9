"""Handwritten digits: the whole method on real data in two minutes, without a download.

    python -m kdih.main --config=configs/digits.py --workdir=runs/digits

scikit-learn's digits: 1,438 images to train with and 359 to test, 8x8 pixels, 10 classes.
Expect 97 to 99 % from every classifier; a difference of a point is noise.
"""
from kdih.config import arguments, fields, recipes


def get_config(arg=None):
  """`arg`: `runlocal` for a smoke test, `recipe=paper|repdistiller`."""
  arg = arguments.parse_arg(arg, runlocal=False, recipe='paper')
  config = fields.base(arg.recipe)
  config.data.update(name='digits', mean=(0.305,), std=(0.376,), padding=1, flip=False)
  config.data.validation_fraction = 0.2
  config.data.eval_global_batch_size = 240
  config.teacher.name = 'resnet20'
  config.student.name = 'resnet8'
  for phase in (config.teacher, config.heads, config.student):
    phase.train.update(length=10.0, milestones=(5.0, 8.0), evaluate_every=1.0)
    phase.train.learning_rate = 0.05
  config.log_every_steps = 10
  if arg.runlocal:
    recipes.run_local(config)
  return config
