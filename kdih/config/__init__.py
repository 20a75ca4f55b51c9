"""The config: every field with its default, recipes, named methods, and the checks of values."""
