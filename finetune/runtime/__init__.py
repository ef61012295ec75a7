"""Devices and processes, launchers, CPU cores and memory, atomic files, the entry of a program."""
