"""A run is a folder: what is written there, and how runs are found and compared."""
