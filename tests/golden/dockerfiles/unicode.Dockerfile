FROM a
RUN echo héllo wörld 日本語 🐳
ENV NAME="日本語 🐳"
LABEL é=ü
COPY ["é", "🐳/"]
# ümlaut
USER ünal
