# The image for machines without a GPU (x86_64).
#
#   docker build -f launch/cpu.Dockerfile -t stargate:0.1.0-cpu .
#   docker run --rm stargate:0.1.0-cpu stargate run cpu_demo
FROM python:3.12-slim-bookworm

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# wget is how KubeRay asks a pod whether it lives. Versions are those of the base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/stargate
COPY . .
RUN PIP_NO_CACHE_DIR=1 make install

# Any user id works, as group 0 (OpenShift) or with the volume's own: see docs/clusters.md.
# A login shell, which KubeRay may use, begins with a PATH of its own.
RUN useradd --create-home --home-dir /home/stargate --uid 10001 --gid 0 stargate \
    && chmod 0770 /home/stargate \
    && echo "export PATH=/opt/stargate/.venv/bin:\$PATH" > /etc/profile.d/stargate.sh
ENV PATH=/opt/stargate/.venv/bin:$PATH \
    HOME=/home/stargate
WORKDIR /home/stargate
USER 10001
CMD ["stargate", "doctor"]
