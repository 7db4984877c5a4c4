"""Scores of images and of features: detectors, distances between feature sets, probes and intervals."""
