"""Handwritten digits: the whole method on a small real data set, without a download.

    python -m kdih.main --config=configs/digits.py --workdir=runs/digits

This takes one to two minutes on two CPU cores. Every classifier has a test accuracy of 97 to
99 % (launch/results/digits.json); with 359 test images, a difference of one point is noise.
"""
from kdih.config import arguments, fields, recipes


def get_config(arg=None):
  """Returns the config.

  Args:
    arg: `runlocal` for a smoke test, `recipe=paper` or `recipe=repdistiller`.
  """
  arg = arguments.parse_arg(arg, runlocal=False, recipe='paper')
  # Optimizer, loss weights and the methods ce, kd and dih.
  config = fields.base(arg.recipe)
  # 1,438 images to train and validate with, 8x8 pixels, 10 classes; mean and std of their pixels.
  config.data.update(name='digits', mean=(0.305,), std=(0.376,))
  # Small images are shifted by one pixel at most, and mirrored digits are not digits.
  config.data.update(padding=1, flip=False)
  # 288 images choose the checkpoints; fewer could not tell them apart.
  config.data.validation_fraction = 0.2
  # Both evaluation splits fit into two batches.
  config.data.eval_global_batch_size = 240
  # Small models, because the images are small.
  config.teacher.name = 'resnet20'
  config.student.name = 'resnet8'
  for phase in (config.teacher, config.heads, config.student):
    # Ten epochs of 18 steps are enough on this data set; the paper trains for 200.
    phase.train.update(length=10.0, milestones=(5.0, 8.0), evaluate_every=1.0)
    # With so few steps, a lower learning rate than the paper's 0.1.
    phase.train.learning_rate = 0.05
  # An epoch has only 18 steps.
  config.log_every_steps = 10
  if arg.runlocal:
    recipes.run_local(config)
  return config
