"""What one request went through, for those who watch: SLO counts, log lines, traces.

fields.py       the section of the configuration
journey.py      one HTTP request on its way: replicas, tokens, times
observing.py    ASGI: begins and ends journeys, and tells clients the request id and the replica
request_log.py  a journey as one line of JSON
tracing.py      OpenTelemetry spans of the ingress
replica_spans.py and of the replica: queue, prefill, decode
"""
