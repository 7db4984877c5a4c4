"""Build a report: all figures and tables of the paper, made from existing runs, as pages, pictures and a PDF."""
