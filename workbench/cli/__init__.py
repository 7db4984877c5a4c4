"""The command line: one module a group of commands, each a dataclass of arguments that is executed."""
