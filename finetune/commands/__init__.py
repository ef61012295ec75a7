"""What `python -m finetune VERB` runs: a module per verb, with `main(arguments) -> exit code`."""
