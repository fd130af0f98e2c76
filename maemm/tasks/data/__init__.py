"""``maemm data``: check, measure and pack data sets."""
