# The image of every Ray node of a cluster: Ray's own image plus Archipelago with its locked packages.
#   docker build -t archipelago .                               for NVIDIA GPUs
#   docker build -t archipelago:cpu --build-arg HARDWARE=cpu .  without GPUs
ARG HARDWARE=gpu
FROM rayproject/ray:2.60.0-py311-${HARDWARE}
ARG HARDWARE

WORKDIR /home/ray/archipelago
COPY --chown=ray:users . .
RUN ENGINE=$([ "$HARDWARE" = gpu ] && echo cuda || echo cpu) UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 \
    python -I deployments/install.py

# First on PATH, so that `ray start`, which KubeRay runs, is the locked Ray with vLLM beside it.
ENV PATH=/home/ray/archipelago/.venv/bin:$PATH
EXPOSE 8000
