"""Stage 1: an LLM endpoint in, a Hub dataset with one config per subgroup out."""
