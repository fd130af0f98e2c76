"""Checkpoint layouts that several plugins share. Not a plugin: it has no manifest."""
