"""Stage 3: a model folder in, mteb results, report and card out, all of it published."""
