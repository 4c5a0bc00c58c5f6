from base
Maintainer Some One <some@one>
EXPOSE 80 443/udp $PORTS
expose "90 91"
USER www:staff
Workdir /a b/ c
VOLUME /x /y
STOPSIGNAL SIGTERM
cmd   echo   "a   b"
