FROM a
ONBUILD RUN make
ONBUILD COPY --from=b --chown=1 a b
ONBUILD RUN ["a", "b"]
onbuild run a
ONBUILD   ENV   A=b C="d e"
ONBUILD ENV A b c
ONBUILD USER 1
ONBUILD HEALTHCHECK --retries=3 CMD a
ONBUILD RUN a \
 # c
  b
ONBUILD CMD []
