# The program alone, from the wheel in target/wheels. From the repository's root:
#
#   scripts/wheel.sh && docker build -t rdpm .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" rdpm sample --class 207
#
# For NVIDIA GPUs, with a wheel that was built where a CUDA toolkit is:
#
#   docker build --build-arg EXTRAS='[cuda13]' -t rdpm .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" rdpm doctor
#
# .ci/run lints it by hadolint. Nobody has built or run it yet.
FROM debian:13-slim AS installed
ARG EXTRAS=
# Any version of Python 3 does, and none of it stays.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
COPY target/wheels/ /wheels/
RUN python3 -m venv /opt/rdpm \
 && set -- /wheels/rdpm-*.whl \
 && if [ $# -ne 1 ]; then echo "target/wheels has $# wheels, and not one"; exit 1; fi \
 && /opt/rdpm/bin/pip install --no-cache-dir "$1$EXTRAS"

FROM debian:13-slim
COPY --from=installed /opt/rdpm /opt/rdpm
ENV PATH=/opt/rdpm/bin:$PATH \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HOME=/work
WORKDIR /work
ENTRYPOINT ["rdpm"]
CMD ["--help"]
