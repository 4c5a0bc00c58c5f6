FROM a
STOPSIGNAL SIGTERM
STOPSIGNAL 9
STOPSIGNAL $S
MAINTAINER Somebody <some@body.example>
maintainer  a  b 
