# The worker.  For NVIDIA GPUs, with CUDA's libraries out of torch's own wheels:
#   docker build -f deploy/worker.Dockerfile -t maskfleet-worker .
# For the processor alone, several GB smaller:
#   docker build -f deploy/worker.Dockerfile --build-arg DEVICE=cpu -t maskfleet-worker:cpu .
FROM python:3.12-slim

ARG DEVICE=gpu
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY . .
# torch by itself first: its index for the processor's builds holds not all that the rest needs.
RUN if [ "$DEVICE" = cpu ]; then \
        pip install -c constraints.txt torch --index-url https://download.pytorch.org/whl/cpu; \
    fi \
    && pip install -c constraints.txt ".[worker]" && rm -rf /build/*

# Models that are fetched from the hub are kept here; mount a volume to keep them over restarts.
ENV HF_HOME=/cache
RUN useradd --system --uid 10001 --no-create-home maskfleet && install -d -o 10001 /cache
USER 10001
WORKDIR /
VOLUME /cache

# Healthy when the model is loaded and the worker is in the ledger.
HEALTHCHECK --interval=15s --timeout=10s --start-period=300s CMD ["python", "-m", "worker.health"]
ENTRYPOINT ["maskfleet"]
CMD ["worker", "--devices", "all"]
