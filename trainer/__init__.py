"""Stage 2: a Hub dataset in, a model folder out."""
