FROM base
RUN ["number", 1]
CMD ["nested", ["x"]]
VOLUME ["/a", null]
