ARG A
ARG B=
ARG C=c D="d e" E='f g' F
FROM a
ARG   http_proxy
ARG G=$A H=${B:-x} I=a\ b
ARG J="a=b"
