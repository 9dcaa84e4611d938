"""The autoscaler as it runs: the loop, the control API, approvals, commands."""
