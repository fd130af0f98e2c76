"""Published weights of point cloud models."""
