"""One file an artifact, each with a function of the file's name."""
