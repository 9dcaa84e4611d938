"""Who may use the endpoint and the control API, how much, and what one client may cost the others.

keys.py         what a key is, and the file of their hashes
keyring.py      that file while it changes
quotas.py       requests and tokens a minute
priorities.py   whose request goes first
admission.py    ASGI: 401 and 429
bounds.py       ASGI: how large a body and how long a request may be
connections.py  HTTP/1.1: how slow, how many and how large the heads of requests may be
listening.py    a server with all of these, and TLS
"""
