FROM a
RUN --mount=type=cache,target=/a xxxxxxxxxx
ENV A0=b A1=b A2=b A3=b A4=b A5=b A6=b A7=b A8=b A9=b A10=b A11=b A12=b A13=b A14=b A15=b A16=b A17=b A18=b A19=b A20=b A21=b A22=b A23=b A24=b A25=b A26=b A27=b A28=b A29=b A30=b A31=b A32=b A33=b A34=b A35=b A36=b A37=b A38=b A39=b SLIP B0=c B1=c B2=c B3=c B4=c B5=c B6=c B7=c B8=c B9=c B10=c B11=c B12=c B13=c B14=c B15=c B16=c B17=c B18=c B19=c B20=c B21=c B22=c B23=c B24=c B25=c B26=c B27=c B28=c B29=c B30=c B31=c B32=c B33=c B34=c B35=c B36=c B37=c B38=c B39=c
