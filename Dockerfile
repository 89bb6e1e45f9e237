# SPDX-License-Identifier: Apache-2.0
# An image with ebpftrace, for Docker, podman and Kubernetes: docs/containers.md.
#
#   docker build -t IMAGE .
#
# The venv belongs to the distribution's Python, so both stages have the same base.
ARG BASE=docker.io/library/debian:trixie-slim

FROM ${BASE} AS build
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ libdw-dev libelf-dev liblzma-dev make pkg-config python3-bpfcc python3-dev \
        python3-numpy python3-venv zlib1g-dev
# drgn's wheel brings 120 MB of libraries, most of them for debuginfod, which asks servers for debug files;
# and there is none for aarch64.
RUN /usr/bin/python3 -m venv --system-site-packages /opt/ebpftrace \
    && CONFIGURE_FLAGS="--with-debuginfod=no --without-libkdumpfile --without-pcre2 --without-json-c --disable-openmp" \
        /opt/ebpftrace/bin/pip install --no-cache-dir --no-compile --no-binary drgn "drgn>=0.1,<0.4" \
    && strip --strip-debug /opt/ebpftrace/lib/python3*/site-packages/_drgn.*.so
COPY pyproject.toml hatch_build.py README.md LICENSE /source/
COPY bpf /source/bpf
COPY ebpftrace /source/ebpftrace
RUN /opt/ebpftrace/bin/pip install --no-cache-dir --no-compile /source \
    && /opt/ebpftrace/bin/pip uninstall -y --quiet pip \
    && /opt/ebpftrace/bin/python -m compileall -q /opt/ebpftrace/lib

FROM ${BASE}
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        libdw1t64 python3-bpfcc python3-numpy \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log \
        /usr/lib/python3/dist-packages/numpy/*/tests /usr/lib/python3/dist-packages/numpy/tests \
        /usr/include
COPY --from=build /opt/ebpftrace /opt/ebpftrace
ENV PATH=/opt/ebpftrace/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["ebpftrace", "--help"]
