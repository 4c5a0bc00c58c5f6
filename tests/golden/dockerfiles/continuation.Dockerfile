FROM base
RUN one \
two\
three \   
  four
RUN a \\
RUN last \
