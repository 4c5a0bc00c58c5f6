FROM base
LABEL version="1.0" "com.example.a b"="c
LABEL one two three
LABEL a="x\
y" \
  b='z'
