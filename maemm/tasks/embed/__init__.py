"""``maemm embed``: features of every sample in one file."""
