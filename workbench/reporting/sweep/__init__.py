"""Sweeps: rows of a table times seeds, each an executed notebook, over any executor of ``concurrent.futures``.

``specification`` reads the YAML and makes of it what has to be executed, ``schedule`` does that in order, ``execution``
is the worker of one row and the process that papermill runs in, ``row`` what the row's notebook calls, ``progress``
says how far it is. They communicate by files under ``RUNS/sweeps/NAME`` (``records``), so that a worker may be on
another machine that sees them.
"""
