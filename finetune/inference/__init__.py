"""Trained models at work: predictions, the evaluation transform as a function, exports."""
