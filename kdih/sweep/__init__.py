"""Sweeps: teachers x students x methods x seeds (`python -m kdih.sweep`)."""
