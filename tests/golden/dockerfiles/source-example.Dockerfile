FROM kb-centos:v11
ENV PATH="/home/work/.jumbo/bin:${PATH}" \
LD_LIBRARY_PATH="${LD_LIBRARY_PATH}:/home/work/kb_install/lib"
USER root
COPY supervisord.conf /home/work/kb_install/
RUN chown -R 1001 /home/work
USER 1001
EXPOSE 8011
CMD ["/home/work/.jumbo/bin/supervisord","-c","/home/work/kb_install/supervisord.conf"]
