FROM a
ENV A="b
ENV A='b c
ENV "A B"=c
ENV A\=b=c
ENV A=b\\ C=d
ENV A=é B=日本語
ENV A="a\\" B=c
