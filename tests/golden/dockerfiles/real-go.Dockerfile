FROM --platform=$BUILDPLATFORM golang AS build
ARG TARGETOS TARGETARCH
WORKDIR /src
RUN --mount=type=bind,target=. \
    --mount=type=cache,target=/go/pkg \
    GOOS=$TARGETOS GOARCH=$TARGETARCH go build -o /out/app ./cmd/app

FROM scratch
COPY --from=build /out/app /app
LABEL org.opencontainers.image.title="app" \
      org.opencontainers.image.source="http://127.0.0.1/app"
ENTRYPOINT ["/app"]
