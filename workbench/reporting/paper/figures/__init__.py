"""Figures and tables, one file each, with a function of the file's name."""
