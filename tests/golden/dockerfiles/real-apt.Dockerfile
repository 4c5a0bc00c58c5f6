FROM debian:12
RUN set -eux; \
	apt-get update; \
	apt-get install -y --no-install-recommends \
		ca-certificates \
# for the tests
		curl \
	; \
	rm -rf /var/lib/apt/lists/*
RUN <<EOF
set -eu
groupadd -r app
useradd -r -g app app
EOF
COPY --chmod=0755 <<'EOF' /entrypoint.sh
#!/bin/sh
set -e
exec "$@"
EOF
ENTRYPOINT ["/entrypoint.sh"]
STOPSIGNAL SIGQUIT
