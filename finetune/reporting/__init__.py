"""The reports of a run: plan, console, records, pictures, model card, trackers."""
