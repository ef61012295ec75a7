"""The audit of a data set: what may spoil a model or its score, for the command `check`."""
