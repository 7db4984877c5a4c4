"""What each command of the command line takes; the options in options/X.py are served by commands/X.py."""

from typing import Annotated

import tyro

Overrides = Annotated[tuple[str, ...], tyro.conf.Positional]
Reference = Annotated[str, tyro.conf.Positional]
