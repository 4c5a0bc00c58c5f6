FROM a
RUN x
envy A=b
