"""What is seen: PromQL, the answers of Prometheus, and whether they can be believed."""
