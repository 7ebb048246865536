# For GPU clusters; the wheels of torch bring CUDA along, the host needs a driver and its container toolkit:
#   docker build --tag cifar_resnets .
#   docker run --rm --gpus all --ipc host --user "$(id -u):$(id -g)" --volume "$PWD:/work" cifar_resnets fit -c speed94 -c gpu
FROM python:3.11-slim-bookworm

# a compiler for torch.compile
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends g++ \
  && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/cifar_resnets
COPY requirements.txt constraints.txt setup.cfg pyproject.toml README.md LICENSE ./
COPY configs configs
COPY cifar_resnets cifar_resnets
RUN pip install --no-cache-dir --constraint constraints.txt .

# caches of any user, and data and runs in the folder that is mounted
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["cifar-resnets"]
CMD ["--help"]
