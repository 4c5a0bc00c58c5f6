FROM --plattform=x a
RUN --mount a
RUN --network=hots a
RUN --security=none a
COPY --link=yes a b
COPY --chown=1 --chown=2 a b
COPY --from= a b
ADD --from=x a b
