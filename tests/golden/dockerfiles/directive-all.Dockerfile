#syntax=docker/dockerfile:1
# Check = skip=all;error=true
#ESCAPE=\
FROM a
RUN b \
 c
