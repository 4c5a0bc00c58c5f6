FROM a
USER root
USER 1001:1001
USER $U:${G:-g}
USER a b
WORKDIR /a
WORKDIR a b
WORKDIR "/a b"
WORKDIR $HOME/x
workdir  /x  
