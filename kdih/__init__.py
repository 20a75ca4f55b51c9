"""Knowledge distillation via intermediate classifiers (DIH, arXiv 2103.00497), in JAX."""

__version__ = '0.1.0'
