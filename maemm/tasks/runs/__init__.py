"""``maemm runs``: a table of runs, the best of them, and what differs between some."""
