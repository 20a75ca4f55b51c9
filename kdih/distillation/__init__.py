"""What every method is made of: lessons, the base class, losses, and features to compare."""
