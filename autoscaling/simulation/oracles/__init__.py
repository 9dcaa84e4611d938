"""What could have been done by someone who knew the trace: bounds and references, never policies to run."""
