FROM base
RUN ['single', 'quotes']
RUN ["open"
RUN ["trailing",]
RUN [ -f x ] && y
CMD {"an": "object"}
VOLUME ["/a"
COPY [a b]
ENTRYPOINT "a string"
