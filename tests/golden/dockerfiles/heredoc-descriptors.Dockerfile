FROM a
RUN 3<<EOF cat <&3
x
EOF
RUN cat 0<<A 10<<-B 2<<'C'
1
A
	2
	B
3
C
