"""``maemm parity``: whether a faster setting learns the same."""
