"""Scores of images, one per file; `METRIC` describes the score and names the function that measures it."""
