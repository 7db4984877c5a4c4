"""The image sets, one file each: ``load(config, split)`` gives the ``Images`` of a split."""
