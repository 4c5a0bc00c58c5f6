FROM a AS 1st
FROM a AS b/c
FROM a IS b
FROM a AS b c
FROM a b
