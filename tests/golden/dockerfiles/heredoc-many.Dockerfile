FROM a
RUN <<A <<B cat
one
A
two
B
COPY <<x.txt <<'y z' /d/
$x
x.txt
$y
y z
ADD <<a /b
c
a
RUN after
