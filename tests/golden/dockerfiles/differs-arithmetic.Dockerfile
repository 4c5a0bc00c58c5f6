FROM a
RUN echo $(( 1<<4 )) && echo $((2<<5))
RUN echo $(( 1<<4 )) <<EOF
x
EOF
