"""Alignment objectives, one file per method; the file name is the method name."""
