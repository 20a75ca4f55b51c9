"""Your own images, in folders: a resnet34 and its heads teach a resnet8.

    python -m kdih.main --config=configs/image_folder.py --workdir=runs/mine \\
        --config.data.folder=~/pictures --config.data.image_size=64
    python -m kdih.main --config=configs/image_folder.py:runlocal --workdir=/tmp/smoke \\
        --config.data.folder=~/pictures --config.data.image_size=64

The images are ~/pictures/train/cat/1.jpg, ~/pictures/test/dog/2.png and so on: a folder for each
split, and within it a folder for each class. JPEG and PNG files of any size are read.
`config.data.image_size` is the side in pixels of a square: each image is resized to cover it and
cropped at the centre. It is not needed if all images have the same size. If the splits have other
names, set them, for instance `--config.data.test_split=val`. If there are no test images, take
slices of the train images: `--config.data.train_split='train[:80%]'
--config.data.test_split='train[80%:]'`.

The files are read where they are, at each start. All images are kept on the device, 12 KiB for
each image of 64x64 pixels. If they do not fit there, add `--config.data.loader=streaming`.

Time and accuracy depend on your images. Add --dry_run to the command to estimate the time.
"""
from kdih.config import arguments, fields, recipes


def get_config(arg=None):
  """Returns the config.

  Args:
    arg: `runlocal` for a smoke test, `recipe=paper` or `recipe=repdistiller`.
  """
  arg = arguments.parse_arg(arg, runlocal=False, recipe='paper')
  # 200 epochs with batches of 64, or 240 with the recipe of RepDistiller; methods ce, kd and dih.
  config = fields.base(arg.recipe)
  config.data.name = 'image_folder'
  # The mean and std of ImageNet, which fit photos of all kinds.
  config.data.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
  # Models for images of 32 to 64 pixels, with a large gap in size.
  config.teacher.name = 'resnet34'
  config.student.name = 'resnet8'
  if arg.runlocal:
    recipes.run_local(config)
    # Whole splits: the slices of `run_local` need more images than a small folder may have.
    config.data.update(train_split='train', test_split='test')
  return config
