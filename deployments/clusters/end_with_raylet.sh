#!/bin/bash
# On a worker of provider local, after `ray start`: ends Ray's log monitor with the raylet. `ray down` stops Ray on the
# head only. A worker's raylet ends when it has missed its head for a minute, and takes its workers along; its agents
# follow within another; its log monitor never does (Ray 2.60, ray/_private/log_monitor.py, run).
set -e
monitor=$(pgrep --newest --full ray/_private/log_monitor.py)
raylet=$(pgrep --newest --exact raylet)
tail --pid="$raylet" --follow /dev/null
kill "$monitor"
