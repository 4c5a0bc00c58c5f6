# syntax=docker/dockerfile:1
ARG VERSION=12
FROM debian:${VERSION} AS build
SHELL ["/bin/bash", "-c"]
WORKDIR /src dir
COPY --chown=1:1 ["main file.c", "./"]
run cc -O2 \
    # optimised
    -o app "main file.c"

FROM scratch
COPY --from=build /src/app /app
LABEL a="1 2" b=3
EXPOSE 80 443/udp
VOLUME /data /log
ENTRYPOINT ["/app"]
