"""The fleet controller: a Ray actor that makes the fleet what is wanted.

    control API --> wish, stored --+
                                   +--> reconcile.next_steps (pure) --> steps --> Serve
    Ray, Serve, replicas --> what is found --+                          |
                                                                        +--> membership --> every ingress

It holds no stream and no token: while it is away everything that serves goes on serving. What it does not know it does
not take for nothing: a replica that does not answer, a Serve that was started again and doubts everything, an ingress
that has not spoken yet change nothing for a while.
"""
