"""What Prometheus reads: series of each ingress, and of the fleets as the controller knows them. See README.md.

Whoever does the work counts in plain numbers (`counting`); series are made of them when somebody scrapes. So a token
costs nothing more, and what is known of a replica goes with the replica.
"""
