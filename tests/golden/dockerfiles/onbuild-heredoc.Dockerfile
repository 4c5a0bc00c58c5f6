FROM a
ONBUILD RUN <<EOF
make
EOF
ONBUILD COPY <<a <<-b /c/
1
a
	2
	b
RUN x
