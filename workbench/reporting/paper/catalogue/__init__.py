"""One file an exhibit, each with a function of the file's name."""
