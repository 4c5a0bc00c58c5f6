FROM a
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
SHELL ["x"]
shell [ "a" ]
