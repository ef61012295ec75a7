"""Every setting, its default and its bounds; a command line from a dataclass."""
