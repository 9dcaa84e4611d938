"""What replicas of a shape can do, and what it takes to get from one fleet to another. Pure."""
