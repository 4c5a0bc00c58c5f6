FROM a
RUN b
RUN <<EOF cat
x
 EOF
COPPY never seen
