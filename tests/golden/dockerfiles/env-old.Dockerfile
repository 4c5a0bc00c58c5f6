FROM a
ENV A b
ENV A  b   c  
ENV A "b c"  d
ENV A = b
ENV A	b	c
ENV A b \
   c
ENV A $B\ c
