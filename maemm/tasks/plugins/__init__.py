"""``maemm plugins``: list, show, write and check plugins."""
