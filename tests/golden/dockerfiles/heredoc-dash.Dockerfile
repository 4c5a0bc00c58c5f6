FROM a
RUN <<-EOF
	one
		two
  three
	EOF
COPY <<-"E O F" /x
	$A
		E O F
RUN <<-A <<B
	A
	x
	B
B
