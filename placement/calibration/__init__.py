"""Measured serving points: fitting the constants to them, and how far off predictions are on others."""
