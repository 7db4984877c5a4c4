"""Image data sets, one file each: ``load(config, split)`` returns the ``Images`` of a split."""
