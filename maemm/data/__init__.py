"""From a source to batches: the order of samples, the loader and the record of unreadable samples."""
