# Images with one static program and nothing else: no shell, no library, nothing that could be written.
#
#   docker build --target gateway --tag recado-gateway .
#   docker build --target agent --tag recado-agent .
#   docker build --target demo --tag recado-demo .         # api_2, for compose.yaml
#
# The program is process 1: it heeds SIGTERM and SIGHUP itself and starts no others. Settings come by variables
# (--help names them), or from a file: --volume ./agent.toml:/etc/recado/agent.toml:ro … --config /etc/recado/agent.toml

# Alpine's C library is musl, so what is built there is static.
FROM rust:1.95-alpine AS build
# For ring, which is partly C. Without a version: Alpine keeps only the newest one.
# hadolint ignore=DL3018
RUN apk add --no-cache musl-dev
WORKDIR /recado
COPY . .
ARG RECADO_COMMIT=unknown
RUN cargo build --locked --release --no-default-features --features tls,websocket,proxy,page,tiny-front \
    --bin api_1 --bin agent --bin api_2

# Whom to trust for mqtts://, wss:// and https://, and a user without rights.
FROM scratch AS base
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
USER 65534:65534
STOPSIGNAL SIGTERM

FROM base AS gateway
COPY --from=build /recado/target/release/api_1 /recado-gateway
# In a container nobody else reaches loopback; which port is published, and where, is said from outside.
ENV RECADO_LISTEN=0.0.0.0:5000
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s CMD ["/recado-gateway", "--health"]
ENTRYPOINT ["/recado-gateway"]

FROM base AS agent
COPY --from=build /recado/target/release/agent /recado-agent
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s CMD ["/recado-agent", "--health"]
ENTRYPOINT ["/recado-agent"]

FROM base AS demo
COPY --from=build /recado/target/release/api_2 /recado-demo
ENV RECADO_LISTEN=0.0.0.0:5001
EXPOSE 5001
ENTRYPOINT ["/recado-demo"]
