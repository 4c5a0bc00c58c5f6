FROM a
RUN <<EOF
x
	y
EOF
COPY <<-a /b
	x
	a
RUN c
