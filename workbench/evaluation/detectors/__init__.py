"""Detectors, one file each: `load(device)` gives a `base.Detector`."""
