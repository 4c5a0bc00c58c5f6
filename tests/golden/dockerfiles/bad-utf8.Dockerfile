FROM a
RUN b
RUN ÿþ
