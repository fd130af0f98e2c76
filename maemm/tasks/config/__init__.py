"""``maemm config``: list, show and print recipes."""
