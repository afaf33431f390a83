# The worker, for NVIDIA GPUs and for the processor: torch's own wheels bring CUDA's libraries along.
#   docker build -f deploy/worker.Dockerfile -t maskfleet-worker .
# For the processor alone it gets several GB smaller with the index of CPU builds that PyTorch's install page names:
#   docker build -f deploy/worker.Dockerfile --build-arg TORCH_INDEX_URL=… -t maskfleet-worker .
FROM python:3.12-slim

ARG TORCH_INDEX_URL=
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY . .
# torch by itself first: an index of its own holds not all that the rest needs, and not in our versions.
RUN if [ -n "$TORCH_INDEX_URL" ]; then \
        pip install --no-deps -c constraints.txt torch --index-url "$TORCH_INDEX_URL"; \
    fi \
    && pip install -c constraints.txt ".[worker]" && rm -rf /build/*

# Models that are fetched from the hub are kept here; mount a volume to keep them over restarts.
ENV HF_HOME=/cache
RUN useradd --system --uid 10001 --no-create-home maskfleet && install -d -o 10001 /cache
USER 10001
WORKDIR /
VOLUME /cache

# Healthy when the model is loaded and the worker is in the ledger.
HEALTHCHECK --interval=15s --timeout=10s --start-period=300s CMD ["python", "-m", "maskfleet.worker.node.health"]
ENTRYPOINT ["maskfleet"]
CMD ["worker", "--devices", "all"]
