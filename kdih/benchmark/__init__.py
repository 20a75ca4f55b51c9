"""How fast a step of DIH is, what bounds it, and how PyTorch compares; see `__main__`."""
