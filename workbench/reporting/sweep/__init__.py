"""Sweeps: rows of a table times seeds, each an executed notebook, over any executor of ``concurrent.futures``.

``specification`` reads the YAML, ``rows`` makes of it what has to be executed and in which order, ``schedule`` does
that, ``execution`` is what a worker does for one row, ``process`` the process of papermill, ``row`` what the row's
notebook calls. Whatever they tell each other goes through files under ``RUNS/sweeps/NAME``, so that a worker may be on
another machine that sees them.
"""
