# The API and the courier: no torch, no numpy.
#   docker build -f deploy/api.Dockerfile -t maskfleet-api .
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY . .
RUN pip install -c constraints.txt ".[server,otel]" && rm -rf /build/*

RUN useradd --system --uid 10001 --no-create-home maskfleet
USER 10001
WORKDIR /

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
# Exec form, no shell: SIGTERM reaches the program.
ENTRYPOINT ["maskfleet"]
CMD ["api", "--host", "0.0.0.0", "--port", "8000"]
