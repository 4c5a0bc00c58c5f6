FROM a AS b
FROM c
COPY \
  --from=b \
  --chown=1 \
  # all of it
  a \
  b \
  /c/
ENV \
  A=1 \
  B=2
EXPOSE 1 \
 2
VOLUME [ \
 "a", \
 "b" \
]
