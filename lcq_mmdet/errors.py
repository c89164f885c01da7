class LCQError(ValueError):
    """A mistake in what the user gave, told in one line."""
