"""The autoscaler's YAML file."""
