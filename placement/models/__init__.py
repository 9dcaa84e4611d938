"""Sizes of a model, from its `config.json`: what it weighs, what its cache takes, what a token costs."""
