"""``maemm probe``: classifiers on frozen features."""
