# Sourced by ~/.bashrc on every machine of a cluster, and so by each command that `ray up` and `ray exec` run there.
export PATH="$HOME/archipelago/.venv/bin:$PATH"
export ARCHIPELAGO_STATE_DIR="$HOME/.archipelago"  # the same for each command, in whatever directory it is run
export RAY_AUTH_MODE=token                         # without ~/.ray/auth_token Ray does not start, and does not answer
export RAY_worker_niceness=0                       # Ray gives its workers niceness 15, as if they were batch jobs
export RAY_SERVE_CONTROL_LOOP_INTERVAL_S=0.5       # Serve's controller looks ten times a second otherwise
