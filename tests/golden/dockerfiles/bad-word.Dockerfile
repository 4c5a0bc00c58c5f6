FROM a

# c
RUN x \
  y
COPPY a b
