# hello = world
# escape=`
FROM a\
 AS b
