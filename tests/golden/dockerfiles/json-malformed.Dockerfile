FROM base
RUN ['single', 'quotes']
RUN ["open"
RUN ["trailing",]
RUN ["number", 1]
RUN ["nested", ["x"]]
RUN ["after"] && more
RUN [ -f x ] && y
CMD {"an": "object"}
VOLUME ["/a"
COPY [a b]
ENTRYPOINT "a string"
