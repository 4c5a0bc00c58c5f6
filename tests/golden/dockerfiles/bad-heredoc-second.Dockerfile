FROM a
COPY \
  <<A <<B /x/
x
A
y
