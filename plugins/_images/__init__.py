"""Reading of image files, for every plugin that meets one. Not a plugin: it has no manifest."""
