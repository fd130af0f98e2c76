"""``maemm knn``: nearest neighbours of frozen features."""
