"""Your own images, in folders: resnet34 and its heads teach resnet8.

    python -m kdih.main --config=configs/image_folder.py --workdir=runs/mine \\
        --config.data.folder=~/pictures --config.data.image_size=64
    python -m kdih.main --config=configs/image_folder.py:runlocal --workdir=/tmp/smoke \\
        --config.data.folder=~/pictures --config.data.image_size=64

The images lie in ~/pictures/train/cat/1.jpg, ~/pictures/test/dog/2.png and so on: one folder for
each split, and in it one for each class. JPEG and PNG of any size and kind will do;
`image_size` resizes each to a square of so many pixels, and is not needed where all have one size.
Other names than train and test: `--config.data.test_split=val`. Without images for testing, cut
some off: `--config.data.train_split='train[:80%]' --config.data.test_split='train[80%:]'`.

They are written once to `config.data.data_dir`, again if a file changes. All of them are kept on
the device, 12 KiB each at 64 pixels; for more than fit there, `--config.data.loader=streaming`.
"""
from kdih.config import arguments, fields, recipes


def get_config(arg=None):
  """`arg`: `runlocal` for a smoke test, `recipe=paper|repdistiller`."""
  arg = arguments.parse_arg(arg, runlocal=False, recipe='paper')
  config = fields.base(arg.recipe)
  config.data.name = 'image_folder'
  # Those of ImageNet, which serve photos of all kinds.
  config.data.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
  config.teacher.name = 'resnet34'
  config.student.name = 'resnet8'
  if arg.runlocal:
    recipes.run_local(config)
    config.data.update(train_split='train', test_split='test')  # Few images would not fill slices.
  return config
