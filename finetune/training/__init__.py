"""Training: parameter groups, schedule, loss, the step, evaluation, checkpoints, resuming."""
