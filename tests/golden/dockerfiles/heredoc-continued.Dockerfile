FROM a
RUN <<EOF \
  cat
x
EOF
RUN a \
  # comment
  <<EOF
x
EOF
RUN --mount=type=cache,target=/x <<EOF
x
EOF
