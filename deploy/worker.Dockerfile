# The worker, for NVIDIA GPUs and CPUs: torch's own wheels include the CUDA libraries.
#   docker build -f deploy/worker.Dockerfile -t maskfleet-worker .
# For CPUs only, the image is several GB smaller with the index of CPU builds given on PyTorch's install page:
#   docker build -f deploy/worker.Dockerfile --build-arg TORCH_INDEX_URL=… -t maskfleet-worker .
FROM python:3.12-slim

ARG TORCH_INDEX_URL=
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY . .
# torch separately and first: its index does not have everything the rest needs, nor in our versions.
RUN if [ -n "$TORCH_INDEX_URL" ]; then \
        pip install --no-deps -c constraints.txt torch --index-url "$TORCH_INDEX_URL"; \
    fi \
    && pip install -c constraints.txt ".[worker,otel]" && rm -rf /build/*

# Models downloaded from the hub are cached here; mount a volume to keep them across restarts.
ENV HF_HOME=/cache
RUN useradd --system --uid 10001 --no-create-home maskfleet && install -d -o 10001 /cache
USER 10001
WORKDIR /
VOLUME /cache

# Healthy once the model is loaded and the worker is registered in the ledger.
HEALTHCHECK --interval=15s --timeout=10s --start-period=300s CMD ["python", "-m", "maskfleet.worker.node.health"]
ENTRYPOINT ["maskfleet"]
CMD ["worker", "--devices", "all"]
