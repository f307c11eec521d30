# The studio for a network, on the processor alone: docs/studio.md says how to build and run it.

FROM python:3.12.12-slim-bookworm AS build
WORKDIR /build
# of pyproject.toml; a node of a cluster (docs/cluster.md) needs cluster and remote as well
ARG EXTRAS=studio,fast
COPY constraints.txt ./
# PyTorch's own index has builds without CUDA, which on Linux x86 takes gigabytes; a version with +cpu goes first
RUN python -m venv /opt/export3d \
    && /opt/export3d/bin/pip install --no-cache-dir -c constraints.txt \
       --extra-index-url https://download.pytorch.org/whl/cpu torch
COPY LICENSE MODEL_CARD.md README.md pyproject.toml ./
COPY src src
RUN /opt/export3d/bin/pip install --no-cache-dir -c constraints.txt ".[$EXTRAS]"

FROM python:3.12.12-slim-bookworm
# wget is for the probes of KubeRay; Debian keeps one version of a package, so none is named
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libgles2 wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin studio
COPY --from=build /opt/export3d /opt/export3d
ENV PATH="/opt/export3d/bin:$PATH" \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /tmp
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
CMD ["export3d", "studio", "--share-on", "0.0.0.0", "--no-browser"]
