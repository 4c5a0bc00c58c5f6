FROM base
ONBUILD RUN make \
   install
ONBUILD COPY ["a", "b"]
onbuild ADD . /x
