# The image of every pod of helm/ and of every Ray node of a cluster: Ray's own image plus Archipelago with its locked
# packages, run by Ray's user `ray` (1000, group 100), never by root. For x86_64, as the locks are.
#   docker build -t archipelago:0.1.0 .                           for NVIDIA GPUs
#   docker build -t archipelago:cpu --build-arg HARDWARE=cpu .    without GPUs
ARG HARDWARE=gpu
FROM rayproject/ray:2.60.0-py311-${HARDWARE}
ARG HARDWARE

USER ray
# Before WORKDIR, which would make it root's.
RUN mkdir /home/ray/archipelago
WORKDIR /home/ray/archipelago
COPY --chown=ray:users . .
RUN ENGINE=$([ "$HARDWARE" = gpu ] && echo cuda || echo cpu) UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 \
    python -I deployments/install.py

# First on PATH, so that `ray start`, which KubeRay runs, is the locked Ray with vLLM beside it. In .profile too, since
# an operator that is set to use login shells (ENABLE_LOGIN_SHELL) would not see the first.
ENV PATH=/home/ray/archipelago/.venv/bin:$PATH
RUN echo 'export PATH=/home/ray/archipelago/.venv/bin:$PATH' >> /home/ray/.profile
EXPOSE 8000 8001
