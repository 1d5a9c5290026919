"""`python -m trainer.report`: what runs have left, printed, compared and drawn."""
