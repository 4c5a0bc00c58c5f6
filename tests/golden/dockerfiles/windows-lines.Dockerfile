# escape=`
FROM base

RUN one `
# c
 two
CMD ["x"]
