FROM a
ENV A=b
ENV A=b C=d\ e F="g h" I='j k'
ENV A= B=""
ENV A=b=c=d
ENV A="b\"c" D=e"f g"h
ENV PATH=$PATH:/x HOME="${HOME:-/root}"
ENV A='b\' C=d
ENV A=b \
    # why
    C=d \

    E=f
