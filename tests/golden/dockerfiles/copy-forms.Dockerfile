FROM a AS b
FROM b
COPY a b
COPY a b c/ d/
COPY ["a b", "c d/"]
COPY	a	b
COPY a* b?c [d] /e/
COPY --from=b /a /b
COPY --from=b --chown=1:2 --chmod=755 a b
COPY --link a b
COPY --link=false a b
COPY --link=TRUE --parents a/b /c
COPY --exclude=*.o --exclude=*.a . /src
COPY --chown="1:2" a b
COPY --from='b' a b
COPY --chown=a\ b c d
COPY "a b" c
COPY -- --a b
