# A static binary in an empty image: no shell, no libraries, nothing else to keep up to date.
FROM rust:1.95-bookworm AS build
# What stands in the empty image says nothing of its parts; Cargo.lock, which is here, does.
ARG BUILDKIT_SBOM_SCAN_STAGE=true
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends musl-tools \
    && rm -rf /var/lib/apt/lists/* \
    && rustup target add "$(uname -m)-unknown-linux-musl"
# For the C parts of the dependencies; Rust has musl's linker files itself.
ENV TARGET_CC=musl-gcc
WORKDIR /src
COPY . .
# jemalloc takes pages to be as large as here, at the most; on arm64 there are kernels with 16 and with 64 KiB.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    target="$(uname -m)-unknown-linux-musl" \
    && case $target in aarch64-*) export JEMALLOC_SYS_WITH_LG_PAGE=16 ;; esac \
    && cargo build --profile dist --locked --package moongate --features jemalloc --target "$target" \
    && cp "target/$target/dist/moongate" /moongate

FROM scratch
# For a Redis behind TLS.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /moongate /moongate
# Loopback, the default, is out of reach from outside a container. The node does not start without MOONGATE_API_TOKEN then.
ENV MOONGATE_API_LISTEN=0.0.0.0:7273
USER 65532:65532
EXPOSE 7272 7273
STOPSIGNAL SIGTERM
# Ready, and not just alive: Docker and Compose restart nobody for it, but tell who waits for a node (`up --wait`,
# `depends_on`) when it takes clients. One that has lost Redis together with all others stays ready. Kubernetes does not
# look at this, and has a probe for each.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s CMD ["/moongate", "check", "--ready"]
ENTRYPOINT ["/moongate"]
