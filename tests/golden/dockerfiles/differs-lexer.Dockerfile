FROM a
RUN echo ${x^^} <<EOF
x
EOF
RUN echo ${x:0:2} ${!y} <<EOF
x
EOF
