"""Scripts to launch runs elsewhere, and studies with their results."""
