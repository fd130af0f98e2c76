"""``maemm demo``."""
