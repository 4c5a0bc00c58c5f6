FROM a
COPY <<.env <<a.b-c_d <<1 <<é /x/
1
.env
2
a.b-c_d
3
1
4
é
RUN <<$EOF
x
$EOF
RUN <<${x}
x
${x}
RUN <<--
x
-
RUN (cat <<EOF)
x
EOF)
