#!/bin/bash
# Prometheus on the head, for as long as this machine's Ray head runs. `ray stop` ends Ray's own processes and no other:
# without this `ray down` would leave a Prometheus behind, and the next `ray up` would find its port taken.
set -e
head=$(pgrep --newest --exact gcs_server)
cd
prometheus --config.file=prometheus.yml --storage.tsdb.path=prometheus --web.listen-address=127.0.0.1:9090 &
tail --pid="$head" --follow /dev/null
kill $!
wait
