"""Alignment objectives, one file a method; the file name is the method name."""
