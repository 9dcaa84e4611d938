"""The control API: what the fleets are, what they shall be, who asked, and what happened since.

    archipelago fleet, scale ... --> commands --> ControlClient --HTTP--> Gate --> control_app --> Fleet
                                                                       (who?)                (the controller)

It is apart from the endpoint that clients of a model use: another port, other secrets. Targets are absolute, so asking
twice is asking once. `wire` has everything that travels; `Fleet` is all the API knows of the controller behind it.
"""
