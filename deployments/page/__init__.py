"""The fleet page: what runs where, how it does, and what the autoscaler would change, in a browser.

The page itself holds nothing; every figure on it comes from the control API, with the token of whoever looks.
"""
