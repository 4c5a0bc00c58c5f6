FROM a
RUN <<"EOF"
$a
EOF
RUN <<'EOF'
$a
EOF
RUN <<E"O"F
$a
EOF
RUN <<\EOF
$a
EOF
RUN <<a"b'c"
x
ab'c
RUN <<eo\'f
x
eo'f
RUN <<"\a\""
x
\a"
RUN <<a\ b
x
a b
