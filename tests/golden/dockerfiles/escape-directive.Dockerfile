# escape=`
FROM a
RUN dir `
 C:\
COPY a C:\b\
ENV A=b` c D=`$E F="`""
WORKDIR C:\x
RUN a``
RUN b ` 
c
