# syntax=docker/dockerfile:1
ARG VERSION=3.11
FROM python:${VERSION}-slim AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /srv

FROM base AS wheels
COPY requirements.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel -r requirements.txt -w /wheels

FROM base
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    pip install /wheels/*.whl
COPY --link --chown=1000:1000 . .
USER 1000
EXPOSE 8000
HEALTHCHECK --interval=10s CMD ["python", "-m", "app.health"]
ENTRYPOINT ["python", "-m", "app"]
