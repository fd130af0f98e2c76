"""From a trained model to a result: features, kNN, probes, fine-tuned classifiers."""
