"""How the embedded model `mini` was made, from nothing: run `python -m training.make_mini`."""
