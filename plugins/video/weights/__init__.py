"""Published checkpoint layouts of video models."""
