"""What the command line does: each function serves one command, prints, and leaves the work to the library."""
