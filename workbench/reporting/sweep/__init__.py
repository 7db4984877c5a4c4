"""Sweeps: rows times seeds, each executed as a notebook, with any executor of ``concurrent.futures``.

``specification`` reads the YAML and plans the jobs, ``schedule`` executes them in order, ``execution`` has the worker
of one row and the process that papermill runs in, ``row`` the functions that the row's notebook calls, ``progress``
reports how far a sweep is. They communicate by files under ``RUNS/sweeps/NAME`` (``records``), so that workers may be
on other machines that share this folder.
"""
