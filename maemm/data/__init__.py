"""From sources to batches: reading files, the order of samples, the loader and the record of unreadable samples."""
