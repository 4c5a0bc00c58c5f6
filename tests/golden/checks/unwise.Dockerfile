# check=experimental=all;skip=FromPlatformFlagConstDisallowed
ARG TAG
arg GLOBAL_TOKEN=x
FROM --platform=$TARGETPLATFORM node:$TAG$TAGG AS Build
ARG NPM_TOKEN
WORKDIR app
copy $SOURCE_DIR .
RUN npm install \

    && npm test

from debian as context
ARG SOURCE_DIRS=src
COPY --from=build /app /$SOURCE_DIR
LABEL a=$b \
      c=${d%x}
ENV LANG C.UTF-8
EXPOSE 80 127.0.0.1:8080:80/TCP
MAINTAINER somebody
CMD ["node", "--version"]
CMD node server.js
FROM context AS build
ADD left /
ENTRYPOINT server
