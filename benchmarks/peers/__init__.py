"""Other ways to fine-tune, each a program of its own that imports nothing of this project's package."""
