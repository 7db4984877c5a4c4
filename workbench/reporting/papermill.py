"""Papermill's command, ``python -m workbench.reporting.papermill``, which starts a second sooner than its own."""

import sys


def skip_grammars() -> None:
    """Let papermill be imported without compiling grammars of web addresses, of which our notebooks have none.

    jsonschema, which checks notebooks, does that for a second where it finds this package.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


if __name__ == "__main__":
    skip_grammars()
    from papermill.cli import papermill

    papermill()
