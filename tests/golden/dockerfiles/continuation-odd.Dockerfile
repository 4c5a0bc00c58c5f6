FROM a
RUN a\
b
RUN a \
\
\
b
\
RUN c
  \
  RUN d
RUN e \ 	 
 f
RUN g \\
RUN h \\\
R\
UN i
RUN \
  j
RUN k\



# x

l
RUN m \