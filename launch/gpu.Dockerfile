# The image for NVIDIA GPUs: launch/kuberay.yaml and launch/slurm.sh use it by this name.
#
#   docker build -f launch/gpu.Dockerfile -t stargate:0.1.0-gpu .
#   docker run --rm --gpus all --shm-size=8g stargate:0.1.0-gpu stargate doctor
#
# Nodes need a driver of CUDA 13 (580 or later). The devel image, because what is compiled at run time (kernels of
# FlashInfer and Triton, DeepSpeed's small op) wants nvcc and headers; no kernel is compiled at the start of an engine.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# wget is how KubeRay asks a pod whether it lives. Versions are those of the base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make python3-dev python3-venv wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/stargate
COPY . .
# Without a GPU here: the installer judges a driver only where it finds one. One layer, or the archives would stay.
RUN PIP_NO_CACHE_DIR=1 make install-gpu

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
