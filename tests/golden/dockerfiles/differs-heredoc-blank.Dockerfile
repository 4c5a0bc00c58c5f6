FROM a
RUN cat << EOF
x
EOF
RUN <<- "E F"
	x
	E F
