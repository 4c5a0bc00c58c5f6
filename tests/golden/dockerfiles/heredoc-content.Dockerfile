FROM a
RUN <<EOF
# not a comment
  indented \

FROM b
EOF 
 EOF
	EOF
EOFEOF
<<EOF
EOF
RUN <<E
E
RUN b
