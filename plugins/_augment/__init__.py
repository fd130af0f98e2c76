"""Augmentations that several plugins use. Not a plugin: it has no manifest."""
