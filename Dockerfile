# The image that compose.yaml builds: the binary, and the client programs that backups and restores run. Those of Debian 13
# are PostgreSQL 17's, which read servers up to 17.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked

FROM debian:trixie-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates postgresql-client zstd \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --create-home --home-dir /var/lib/nightporter nightporter
COPY --from=build /src/target/release/nightporter /usr/local/bin/nightporter
USER nightporter
WORKDIR /var/lib/nightporter
ENTRYPOINT ["nightporter"]
CMD ["up"]
