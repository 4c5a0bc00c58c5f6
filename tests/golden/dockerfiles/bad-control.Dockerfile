FROM a
ENV A=[31m [0mB
