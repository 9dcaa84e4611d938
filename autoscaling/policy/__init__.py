"""What should run, and why not something else: options, each priced, and when to wait. Pure."""
