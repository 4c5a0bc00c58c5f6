FROM a
LABEL a=b
LABEL "a b"="c d" e.f/g-h='i'
LABEL a b c
LABEL a="line \
broken"
LABEL a=\" b=\' c=\$d
label version=1.0 \
      description="x=y z"
