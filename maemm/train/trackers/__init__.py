"""Trackers that come with maemm."""
