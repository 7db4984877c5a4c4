"""Features of a run: extraction and projection to colours."""
