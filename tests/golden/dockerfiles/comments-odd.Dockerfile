#
# a
#b
  # c
FROM a #x
RUN b #\
 c
RUN d \
#
# x \
   \
   # y
 e
#\
RUN f
