"""Run folders: creating, finding, reading and indexing runs."""
