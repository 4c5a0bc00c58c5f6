FROM a
CMD ["a"] b
VOLUME ["/a"] /b
RUN ["after"] && more
