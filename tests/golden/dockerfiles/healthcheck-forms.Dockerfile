FROM a
HEALTHCHECK NONE
healthcheck none
HEALTHCHECK CMD curl -f http://127.0.0.1/ || exit 1
HEALTHCHECK CMD ["curl", "-f"]
HEALTHCHECK --interval=5m --timeout=3s --start-period=1m30s --start-interval=500ms --retries=3 CMD a
HEALTHCHECK  --interval=0  \
  CMD   a  b 
HEALTHCHECK cmd a
HEALTHCHECK --timeout=1.5h --retries=0 CMD ["a"]
