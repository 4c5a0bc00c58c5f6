FROM a
COPY <<../x /y/
1
../x
ADD <<a <<b/c /d/
2
a
3
b/c
RUN <<a/b
#!/bin/sh
a/b
COPY <<. /d/
.
