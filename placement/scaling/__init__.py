"""What more GPUs bring to one replica, where that turns, and the reports that show it."""
