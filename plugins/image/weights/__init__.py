"""Published layouts of image masked autoencoders."""
