ARG TAG=v11
ARG BASE=kb-centos:$TAG OTHER
FROM $BASE
FROM --platform=linux/amd64 kb-centos:v11 AS one
FROM	kb-centos@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef   as	two
FROM scratch As a_b.c-d
from one
