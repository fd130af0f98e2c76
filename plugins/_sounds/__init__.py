"""Sound files, read in parts, for every plugin that meets one. Not a plugin: it has no manifest."""
