"""Detectors, one per file; `load(device)` returns a `base.Detector`."""
