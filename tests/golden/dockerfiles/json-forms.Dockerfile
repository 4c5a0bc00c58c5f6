FROM base
RUN ["one", "two words", "\u00e9\n\"q\""]
RUN   [ "spaced" , "out" ]  
CMD []
ENTRYPOINT ["a"]
SHELL ["/bin/sh", "-ec"]
VOLUME ["/a b", "/c"]
COPY ["x y", "z"]
ADD ["x y", "./"]
