# The worker and the commands: docker build -t pulsefold . && docker run --rm pulsefold --help
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY streams streams
COPY tables tables
COPY agents agents
RUN python -m venv /opt/pulsefold && /opt/pulsefold/bin/pip install --no-cache-dir '.[service]'

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/pulsefold --create-home pulsefold
COPY --from=build /opt/pulsefold /opt/pulsefold
ENV PATH=/opt/pulsefold/bin:$PATH PYTHONUNBUFFERED=1 PULSEFOLD_DATA_DIR=/var/lib/pulsefold
USER pulsefold
WORKDIR /var/lib/pulsefold
EXPOSE 6066
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:6066/readyz', timeout=3)"]
ENTRYPOINT ["pulsefold"]
CMD ["worker"]
