# syntax=a
# escape=/
FROM a
