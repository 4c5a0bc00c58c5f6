# escape=`
FROM windows
WORKDIR C:\src
RUN dir C:\ `
  /w
COPY ["a b", "C:\\\\dir\\\\"]
ENV A=b` c D="e`"f" G=h\i
