"""Scores of images, one file each: `METRIC` says what the score is and which function measures it."""
