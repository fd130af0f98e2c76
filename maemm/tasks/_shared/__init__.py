"""What several verbs share: opening models and data, embedding, caches, comparisons, records, pages of runs."""
