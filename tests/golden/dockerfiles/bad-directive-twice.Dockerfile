# escape=`
# syntax=x
# ESCAPE=\
FROM a
