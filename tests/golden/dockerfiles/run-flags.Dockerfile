FROM a
RUN --mount=type=cache,target=/root/.cache --mount=type=bind,source=.,target=/src make
RUN --network=none make
RUN --network=host --security=sandbox make
RUN --mount=type=secret,id=x,required=true ["cat", "/run/secrets/x"]
RUN --mount=type=tmpfs,target=/tmp \
    --mount=type=bind,from=build,source="/a b",target=/c \
    make
RUN -- --odd
RUN --mount=target=/x -- make
RUN - a
