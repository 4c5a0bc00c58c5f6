FROM base AS b
FROM other
COPY --from=b --chown=1:2 --chmod=0644 x y /z/
COPY   --chown=$USER:$GROUP   x   y
ADD --chown=1 a.tar /
COPY -- --odd-name /x
HEALTHCHECK --interval=5s --retries=3 CMD curl -f http://localhost/
HEALTHCHECK NONE
