FROM a
COPY \
  --chmwon=1 a b
