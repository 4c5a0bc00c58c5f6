FROM a
RUN cat <<<word
RUN cat<<EOF
RUN "<<EOF" '<<EOF' \<<EOF
RUN a <<EOF<<B
RUN a << 
RUN <<
RUN <<-
RUN <<"" x
RUN ["<<EOF"]
COPY ["<<a", "b"]
CMD <<EOF
ENV A=<<EOF
ENTRYPOINT cat <<EOF
RUN echo " <<EOF
RUN echo $((1 << 2))
RUN echo <&3 a<b
