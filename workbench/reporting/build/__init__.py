"""A report: every figure and table of the paper, made from the runs there are, as pages, pictures and one PDF."""
